"""Adapters added to the weights of their base: the result is a whole model, in the format and layout of the base."""

import shutil
from pathlib import Path

import torch

from ascend_patch.checkpoint import huggingface, manifest, megatron, output, side_files
from ascend_patch.checkpoint.adapters import Adapters, load_tensor
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.stored import Checkpoint, Piece, StoredTensor


def open_base(folder: Path) -> Checkpoint:
    """The base in a folder: Hugging Face's, or a release of Megatron-LM.

    Raises:
        CheckpointError: it is neither. The state of a training would not fit merged weights.
    """
    tracker = folder / megatron.TRACKER
    if not tracker.is_file():
        return huggingface.open(folder)
    if tracker.read_text().strip() != megatron.RELEASE:
        raise CheckpointError(
            f"{folder} holds a training with its optimizer, which would not fit merged weights. Leave that behind with "
            "tools/checkpoint/util.py --loader mixtral_mg --saver mixtral first, and merge into the result."
        )
    return megatron.open(folder, vocab_size=side_files.vocab_size(folder / side_files.KEPT_IN))


def merge(adapters: Adapters, base: Path, folder: Path) -> None:
    """Copy ``base`` to ``folder``, and add the adapters: ``W + alpha / rank * B A`` in float32, rounded once.

    Raises:
        CheckpointError: ``folder`` exists, or the base is of other sizes than that of the adapters.
    """
    output.check_new(folder)
    source = open_base(base)
    wanted, found = adapters.shape.tensors(), source.shape.tensors()
    for parameter in adapters.pairs:
        for name in {run.name for run in parameter.runs}:
            if found.get(name) != wanted[name]:
                raise CheckpointError(
                    f"The adapters are of a model whose {name} is {wanted[name]}, and that in {base} is "
                    f"{found.get(name)}. Name the base that they were trained on."
                )
    unfinished = output.unfinished(folder)
    shutil.copytree(base, unfinished)
    (unfinished / manifest.NAME).unlink(missing_ok=True)  # lists the checksums of the base
    for parameter, (first, second) in adapters.pairs.items():
        start = 0
        change = adapters.scaling * second.float() @ first.float()
        for run in parameter.runs:
            stop = start + run.rows[1] - run.rows[0]
            for piece in source.pieces[run.name]:
                _add(piece, run.rows, change[start:stop], unfinished / piece.tensor.file.relative_to(base))
            start = stop
    output.publish(folder)


def _add(piece: Piece, rows: tuple[int, int], change: torch.Tensor, file: Path) -> None:
    """Add ``change``, of the canonical rows ``rows``, to what a piece has of them."""
    top, bottom = max(rows[0], piece.rows[0]), min(rows[1], piece.rows[1])
    if top >= bottom:
        return
    own, cols = change[top - rows[0] : bottom - rows[0], slice(*piece.cols)], piece.cols[1] - piece.cols[0]
    row, col = piece.at[0] + top - piece.rows[0], piece.at[1]
    if piece.transposed:
        raise CheckpointError(f"{piece.tensor.file} is of a release before 0.17. Convert it first.")
    stored = StoredTensor(file, piece.tensor.position(row), (bottom - top, piece.tensor.cols), piece.tensor.dtype)
    block = load_tensor(stored)
    block[:, col : col + cols] = (block[:, col : col + cols].float() + own).to(block.dtype)
    with file.open("r+b") as stream:
        stream.seek(stored.offset)
        stream.write(block.view(torch.uint8).numpy().tobytes())
