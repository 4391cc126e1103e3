"""Folders of Hugging Face: config.json, and the weights in safetensors files or files of `torch.save`."""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ascend_patch.checkpoint import safetensors, torch_file
from ascend_patch.checkpoint.dtypes import DTYPES
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.shape import EMBEDDING, HEAD, ModelShape
from ascend_patch.checkpoint.stored import Checkpoint, Piece, StoredTensor

MAX_SHARD = 5_000_000_000
"""Bytes of the tensors in one file, if it has more than one."""

_IGNORED = ".rotary_emb.inv_freq"
"""Computed, not trained; old releases of transformers saved it."""

type _Reader = Callable[[Path], Mapping[str, Any]]


def open(folder: Path, *, trust: bool = False) -> Checkpoint:
    """The Mixtral or Mistral in a folder, as `save_pretrained` writes it.

    Args:
        folder: with config.json and model*.safetensors, or pytorch_model*.bin if there are none.
        trust: see `safe_pickle.load`; for pytorch_model*.bin.

    Raises:
        CheckpointError: another architecture; a file that is missing, damaged or refused; a tensor that is missing,
            left over, of another shape than config.json says or of a dtype that is not in `dtypes.DTYPES`.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder. Download the model first, for instance with "
            f"`hf download NAME --local-dir {folder}`."
        )
    shape = ModelShape.from_hf(_json(folder / "config.json"), str(folder / "config.json"))
    found = {name: value for name, value in _tensors(folder, trust).items() if not name.endswith(_IGNORED)}
    expected = shape.tensors()
    # A tied output layer may be there, or not. If it is, it must hold the embedding: the engine compares replicas.
    names = {name: [name] for name in expected}
    if shape.tied and HEAD in found:
        names[EMBEDDING].append(HEAD)
    _check(folder, {own: expected[name] for name, group in names.items() for own in group}, found)
    pieces = {name: [_whole(found[own]) for own in group] for name, group in names.items()}
    dtypes = {piece.tensor.dtype for group in pieces.values() for piece in group}
    # The narrowest dtype that holds all of them: nothing is lost where a few are wider.
    return Checkpoint(folder, shape, functools.reduce(torch.promote_types, dtypes), pieces)


def create(folder: Path, shape: ModelShape, dtype: torch.dtype, *, max_shard: int = MAX_SHARD) -> Checkpoint:
    """New safetensors files, and their index if there is more than one, with holes for the tensors.

    Args:
        folder: exists, without such files.
        max_shard: bytes of the tensors in one file; a larger tensor has a file to itself.

    Raises:
        CheckpointError: a file exists.
    """
    shards: list[dict[str, tuple[int, ...]]] = []
    total, size = 0, max_shard
    for name, tensor in shape.tensors().items():
        nbytes = math.prod(tensor) * dtype.itemsize
        if size + nbytes > max_shard:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size, total = size + nbytes, total + nbytes
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    stored: dict[str, StoredTensor] = {}
    for file, names in zip(files, shards, strict=True):
        stored |= safetensors.create(folder / file, names, dtype)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: tensor.file.name for name, tensor in stored.items()},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return Checkpoint(folder, shape, dtype, {name: [_whole(tensor)] for name, tensor in stored.items()})


def _whole(tensor: StoredTensor) -> Piece:
    return Piece(tensor, (0, tensor.rows), (0, tensor.cols))


def _tensors(folder: Path, trust: bool) -> dict[str, Any]:
    readers: dict[str, _Reader] = {
        "model.safetensors": safetensors.read,
        "pytorch_model.bin": lambda file: _state_dict(file, trust),
    }
    for name, read in readers.items():
        index = folder / f"{name}.index.json"
        if index.exists():
            return _sharded(index, read)
        if (folder / name).exists():
            return dict(read(folder / name))
    raise CheckpointError(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, nor the .index.json of one of "
        f"them. Is the download complete?"
    )


def _sharded(index: Path, read: _Reader) -> dict[str, Any]:
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in places.values()
    ):
        raise CheckpointError(f"{index} has no weight_map that names a file of its folder for each tensor.")
    files = sorted(set(places.values()))
    if absent := [file for file in files if not (index.parent / file).exists()]:
        raise CheckpointError(f"{index} names files that are not there: {_some(absent)}. Is the download complete?")
    found: dict[str, Any] = {}
    for file in files:
        for name, tensor in read(index.parent / file).items():
            if places.get(name) != file:
                raise CheckpointError(
                    f"{index.parent / file} holds {name}, but {index.name} has it in {places.get(name)}."
                )
            found[name] = tensor
    if lost := sorted(places.keys() - found.keys()):
        raise CheckpointError(f"{index} names tensors that are not in their files: {_some(lost)}.")
    return found


def _state_dict(file: Path, trust: bool) -> Mapping[str, Any]:
    found = torch_file.read(file, trust=trust)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{file} holds a {type(found).__name__}, not the tensors of a model by their names.")
    return found


def _check(folder: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]) -> None:
    faults = []
    if missing := [name for name in expected if name not in found]:
        faults.append(f"missing: {_some(missing)}")
    if left := [name for name in found if name not in expected]:
        faults.append(f"left over: {_some(left)}")
    both = {name: (shape, found[name]) for name, shape in expected.items() if name in found}
    if odd := [name for name, (_, tensor) in both.items() if not isinstance(tensor, StoredTensor)]:
        faults.append(f"not contiguous tensors: {_some(odd)}")
    plain = {name: pair for name, pair in both.items() if name not in odd}
    if wrong := [
        f"{name} {tensor.shape}, not {shape}" for name, (shape, tensor) in plain.items() if tensor.shape != shape
    ]:
        faults.append(f"of another shape than config.json says: {_some(wrong)}")
    if other := [f"{name} {tensor.dtype}" for name, (_, tensor) in plain.items() if tensor.dtype not in DTYPES]:
        faults.append(f"of a dtype that is not {', '.join(map(str, DTYPES))}: {_some(other)}")
    if faults:
        raise CheckpointError(f"{folder} is not the model that its config.json describes. Tensors {'; '.join(faults)}.")


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON ({error}): is it truncated?") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not an object.")
    return content
