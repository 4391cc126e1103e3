"""Files of safetensors: eight bytes with the length of a JSON header, the header, the tensors one after the other.

The library of that name hands out tensors, not their places in the file; so the header is read and written here.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.stored import StoredTensor

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
"""The format's name -> dtype."""

MAX_HEADER = 100_000_000
"""Bytes; the library's limit."""


def read(file: Path) -> dict[str, StoredTensor]:
    """Name -> tensor, in the order of the file.

    Raises:
        CheckpointError: the file is missing, truncated or damaged, or two tensors share bytes.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise CheckpointError(
                    f"{file} has {size} bytes and claims a header of {length}: it is truncated, or no safetensors file."
                )
            content = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}).") from error
    try:
        header = json.loads(content, object_pairs_hook=lambda pairs: _unique(file, pairs))
        if not isinstance(header, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its header is not the JSON of a safetensors file ({error}).") from error
    header.pop("__metadata__", None)
    data = 8 + length
    tensors = {name: _tensor(file, data, name, entry) for name, entry in header.items()}
    _check_places(file, data, size, tensors)
    return dict(sorted(tensors.items(), key=lambda item: item[1].offset))


def create(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, StoredTensor]:
    """Write everything of a file but its tensors, for which it has holes, in the order of `shapes`.

    Raises:
        CheckpointError: the file exists.
    """
    (code,) = (code for code, known in DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)  # so that the tensors are aligned
    try:
        with file.open("xb") as stream:
            stream.write(len(content).to_bytes(8, "little") + content)
            stream.truncate(8 + len(content) + end)
    except FileExistsError as error:
        raise CheckpointError(f"{file} exists already. It is left as it is: name another folder.") from error
    return read(file)


def _unique(file: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise CheckpointError(f"{file}: its header has {name} twice: it is damaged.")
        found[name] = value
    return found


def _tensor(file: Path, data: int, name: str, entry: Any) -> StoredTensor:
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{file}: the header's entry of {name} is damaged: {entry!r:.200}.")
    if code not in DTYPES:
        raise CheckpointError(f"{file}: {name} has the dtype {code!r}; known are {', '.join(DTYPES)}.")
    tensor = StoredTensor(file, data + begin, shape, DTYPES[code])
    if end - begin != tensor.nbytes:
        raise CheckpointError(
            f"{file}: {name} of dtype {code} and shape {shape} needs {tensor.nbytes} bytes, but has those from {begin} "
            f"to {end}: the header is damaged."
        )
    return tensor


def _check_places(file: Path, data: int, size: int, tensors: Mapping[str, StoredTensor]) -> None:
    """The tensors follow one another without overlap or hole, up to the end of the file."""
    position, previous = data, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset != position:
            what = "share bytes" if tensor.offset < position else "have unused bytes between them"
            raise CheckpointError(f"{file}: {previous} and {name} {what}: the header is damaged.")
        position, previous = position + tensor.nbytes, name
        if position > size:
            raise CheckpointError(f"{file} is truncated: {name} ends at byte {position}, the file at {size}.")
    if position != size:
        raise CheckpointError(f"{file} has {size - position} bytes after its last tensor: it is damaged.")
