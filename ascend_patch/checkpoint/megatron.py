"""Megatron-LM's checkpoints: finding the iteration in a folder, and which of the two formats it has."""

import re
from pathlib import Path

import torch

from ascend_patch.checkpoint import arguments, megatron_dist, megatron_torch, torch_dist
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.keys import Build
from ascend_patch.checkpoint.layout import Layout
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.checkpoint.stored import Checkpoint

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
"""What the tracker says, and the folder is called, of weights without a training run."""

FORMATS = ("torch", "torch_dist")

DEFAULT_BUILD = Build()


def open(folder: Path, *, step: int | None = None, vocab_size: int | None = None, trust: bool = False) -> Checkpoint:
    """The Mixtral or Mistral in a checkpoint of Megatron-LM, of either format.

    The layout is the one that the checkpoint's arguments describe. Every tensor of the model must be there, and no
    other; the state of the optimizer, of random numbers and of FP8 is passed over.

    Args:
        folder: what was given to `--save`, or the folder of one iteration in it.
        step: the iteration; without it the one that upstream would load.
        vocab_size: of the tokenizer. Rows beyond it are padding, the checkpoint's `fill`. Without it, all rows count.
        trust: see `safe_pickle.load`.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged or refused, its model is another, or tensors are
            missing, left over or of the wrong shape.
    """
    iteration = find(folder, step)
    module = megatron_dist if (iteration / torch_dist.METADATA).exists() else megatron_torch
    return module.open(iteration, vocab_size=vocab_size, trust=trust)


def find(folder: Path, step: int | None = None) -> Path:
    """The folder of an iteration: `step`, or the one that the tracker names.

    Raises:
        CheckpointError: there is none; names those that there are.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder.")
    if step is not None:
        name = f"iter_{step:07d}"
    elif (folder / TRACKER).exists():
        text = (folder / TRACKER).read_text().strip()
        if text != RELEASE and not text.isdecimal():
            raise CheckpointError(f"{folder / TRACKER} holds {text!r}; it should hold the number of an iteration.")
        name = RELEASE if text == RELEASE else f"iter_{int(text):07d}"
    elif (folder / torch_dist.METADATA).exists() or any(folder.glob(f"mp_rank_*/{megatron_torch.FILE}")):
        return folder
    else:
        raise CheckpointError(
            f"{folder} has no {TRACKER}, so it is no checkpoint of Megatron-LM. For one iteration name its folder."
        )
    if not (folder / name).is_dir():
        there = sorted(one.name for one in folder.iterdir() if re.fullmatch(r"release|iter_\d+", one.name))
        raise CheckpointError(f"{folder} has no {name}. It has {', '.join(there) or 'no iteration'}: see --ckpt-step.")
    return folder / name


def create(
    folder: Path,
    shape: ModelShape,
    layout: Layout,
    dtype: torch.dtype,
    *,
    padded_vocab: int,
    checkpoint_format: str = "torch_dist",
    build: Build = DEFAULT_BUILD,
) -> Checkpoint:
    """Write a checkpoint but for the bytes of its tensors, and for the tracker (`finish`).

    It has no optimizer and is a release: training with it starts at iteration 0.

    Args:
        folder: exists; the checkpoint goes to `release` in it.
        padded_vocab: rows of the embedding (`arguments.padded_vocab_size`). Those beyond the vocabulary are `fill`.
        build: in format `torch` it decides the names of tensors, and training needs the same flags; in format
            `torch_dist` any will do.

    Raises:
        CheckpointError: the layout does not suit the model or the format, or a file exists.
    """
    if checkpoint_format not in FORMATS:
        raise CheckpointError(f"--ckpt-format is {checkpoint_format!r}; it must be {' or '.join(FORMATS)}.")
    layout.check(shape)
    if padded_vocab < shape.vocab_size or padded_vocab % layout.tensor:
        raise CheckpointError(
            f"The embedding cannot have {padded_vocab} rows: it needs the {shape.vocab_size} of the vocabulary, and "
            f"a multiple of the tensor parallel size, {layout.tensor}."
        )
    args = arguments.write(shape, layout, padded_vocab, dtype, build, checkpoint_format)
    state = {"args": args, "checkpoint_version": 3.0, "iteration": 0, "num_floating_point_operations_so_far": 0}
    iteration = folder / RELEASE
    iteration.mkdir()
    if checkpoint_format == "torch":
        return megatron_torch.create(iteration, shape, layout, dtype, state, padded_vocab=padded_vocab, build=build)
    state["content_metadata"] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    return megatron_dist.create(iteration, shape, layout, dtype, state, padded_vocab=padded_vocab)


def finish(folder: Path) -> None:
    """Write the tracker, without which upstream finds nothing in the folder."""
    (folder / TRACKER).write_text(RELEASE)
