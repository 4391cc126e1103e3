"""Folders of `torch.distributed.checkpoint`, as Megatron-LM's `--ckpt-format torch_dist` writes them.

A tensor is cut into chunks. Each chunk is a small file of `torch.save` inside of a `.distcp` file, one a rank, and
`.metadata` is a pickle that says which chunk is where. Other objects are bytes in the same files.
"""

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ascend_patch.checkpoint import safe_pickle, torch_file
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.stored import StoredTensor

METADATA, COMMON, BACKEND = ".metadata", "common.pt", "metadata.json"
_COMMON_KEY = "common_state/shard_0_1"
"""Where releases since 0.19 put what used to be in common.pt."""

type Offsets = tuple[int, ...]


@dataclass(frozen=True)
class GlobalTensor:
    """A whole tensor, as `.metadata` describes it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[tuple[Offsets, tuple[int, ...]], ...]
    """Offsets and shape of each chunk."""


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor, and where it lies in the whole."""

    offsets: Offsets
    tensor: StoredTensor


@dataclass(frozen=True)
class Shard:
    """A chunk to write."""

    key: str
    global_shape: tuple[int, ...]
    offsets: Offsets
    shape: tuple[int, ...]
    dtype: torch.dtype


class DistCheckpoint:
    """A folder, opened for reading: of one iteration, with `.metadata` in it, which is all that is read at first.

    Args:
        folder: the folder.
        trust: see `safe_pickle.load`.

    Raises:
        CheckpointError: `.metadata` is missing, refused or damaged.
    """

    def __init__(self, folder: Path, *, trust: bool = False) -> None:
        self.folder = folder
        self._trust = trust
        self._file = folder / METADATA
        try:
            with self._file.open("rb") as stream:
                metadata = safe_pickle.load(stream, self._file, trust=trust)
        except OSError as error:
            raise CheckpointError(
                f"{self._file} cannot be read ({error.strerror}). The folder is no finished torch_dist checkpoint."
            ) from error
        try:
            entries = dict(metadata.state_dict_metadata)
            self.tensors = {key: _global_tensor(entry) for key, entry in entries.items() if hasattr(entry, "chunks")}
            self.objects = frozenset(entries) - frozenset(self.tensors)
            self._places = {
                (index.fqn, None if getattr(index, "offset", None) is None else _ints(index.offset)): info
                for index, info in metadata.storage_data.items()
            }
        except (AttributeError, TypeError, ValueError, LookupError) as error:
            raise CheckpointError(f"{self._file} is not the metadata of a torch_dist checkpoint ({error}).") from error

    tensors: Mapping[str, GlobalTensor]
    """By key."""
    objects: frozenset[str]
    """Keys of everything that is no tensor, for instance `…._extra_state/shard_0_4`."""

    def chunks(self, key: str) -> list[Chunk]:
        """Where the chunks of a tensor lie.

        Raises:
            CheckpointError: there is no such tensor; a chunk is missing, truncated, or not what `.metadata` says.
        """
        if key not in self.tensors:
            raise CheckpointError(f"{self.folder} has no tensor {key}.")
        whole = self.tensors[key]
        found = []
        for offsets, shape in whole.chunks:
            if not _inside(offsets, shape, whole.shape):
                raise CheckpointError(
                    f"{self._file}: the chunk {shape} at {offsets} of {key} is not inside of {whole.shape}."
                )
            tensor = self._read(key, offsets)
            if not isinstance(tensor, StoredTensor) or (tensor.shape, tensor.dtype) != (shape, whole.dtype):
                raise CheckpointError(
                    f"{self.folder}: the chunk of {key} at {offsets} should be a {whole.dtype} tensor of shape "
                    f"{shape}, but is {tensor!r:.300}."
                )
            found.append(Chunk(offsets, tensor))
        return found

    def object(self, key: str) -> Any:
        """What is stored under a key of `objects`, with a `StoredTensor` for each tensor in it.

        Raises:
            CheckpointError: there is no such object, or it cannot be read.
        """
        if key not in self.objects:
            raise CheckpointError(f"{self.folder} has no object {key}.")
        values = self._read(key, None)
        if not isinstance(values, list) or len(values) != 1:
            raise CheckpointError(f"{self.folder}: the object {key} should be a list of one, but is {values!r:.300}.")
        return values[0]

    def common(self) -> dict[str, Any]:
        """What all ranks share: Megatron-LM's arguments (`args`), the iteration and the like.

        Raises:
            CheckpointError: there is none, or it cannot be read.
        """
        file = self.folder / COMMON
        if not file.exists() and _COMMON_KEY not in self.objects:
            raise CheckpointError(
                f"{self.folder} has neither {COMMON} nor the entry {_COMMON_KEY}, where Megatron-LM keeps its "
                f"arguments. Was it written by Megatron-LM?"
            )
        found = torch_file.read(file, trust=self._trust) if file.exists() else self.object(_COMMON_KEY)
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.folder}: its common state is a {type(found).__name__}, not a dictionary.")
        return found

    def _read(self, key: str, offsets: Offsets | None) -> Any:
        info = self._places.get((key, offsets))
        path, start, length = (getattr(info, name, None) for name in ("relative_path", "offset", "length"))
        if (
            not (isinstance(path, str) and isinstance(start, int) and isinstance(length, int))
            or Path(path).name != path
            or min(start, length) < 0
        ):
            raise CheckpointError(
                f"{self._file} does not say in which file of its folder {key} at {offsets} is: it is damaged."
            )
        if compression := getattr(info, "transform_descriptors", None):
            raise CheckpointError(
                f"{self.folder / path}: {key} is transformed ({compression}), which cannot be converted. Save the "
                f"checkpoint without compression."
            )
        try:
            return torch_file.read(self.folder / path, start=start, length=length, trust=self._trust)
        except CheckpointError as error:
            raise CheckpointError(f"{key}: {error}") from error


def create(
    folder: Path, ranks: Sequence[Sequence[Shard]], *, objects: Mapping[str, Any], common: Mapping[str, Any]
) -> list[list[StoredTensor]]:
    """Write everything of a checkpoint but the bytes of its tensors, for which its files have holes.

    The common state goes to common.pt, as up to 0.18: all supported releases read it from there.

    Args:
        folder: exists, and is empty.
        ranks: for each rank the shards in its file.
        objects: key -> an object that is no tensor (`…._extra_state/shard_0_4`).
        common: content of common.pt.

    Returns:
        The holes, as `ranks`.

    Raises:
        CheckpointError: the shards of a tensor do not make it up, or a file exists.
    """
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    entries: dict[str, Any] = {key: dcp.BytesStorageMetadata() for key in objects}
    for key, group in _by_key(ranks).items():
        chunks = [dcp.ChunkStorageMetadata(torch.Size(shard.offsets), torch.Size(shard.shape)) for shard in group]
        properties = dcp.TensorProperties(dtype=group[0].dtype)
        entries[key] = dcp.TensorStorageMetadata(properties, torch.Size(group[0].global_shape), chunks)

    places = {}
    holes = []
    try:
        for rank, shards in enumerate(ranks):
            file = folder / f"__{rank}_0.distcp"
            items: list[tuple[Any, Any]] = [
                (
                    dcp.MetadataIndex(shard.key, shard.offsets),
                    torch.empty(shard.shape, dtype=shard.dtype, device="meta"),
                )
                for shard in shards
            ]
            if rank == 0:
                items += [(dcp.MetadataIndex(key), [value]) for key, value in objects.items()]
            with file.open("xb") as stream:
                for index, value in items:
                    start = stream.tell()
                    torch_file.append(stream, value)
                    places[index] = _StorageInfo(file.name, start, stream.tell() - start)
            own = [places[index] for index, _ in items[: len(shards)]]
            holes.append([torch_file.read(file, start=place.offset, length=place.length) for place in own])
        with (folder / METADATA).open("xb") as stream:
            pickle.dump(dcp.Metadata(entries, storage_data=places, version="1.0.0"), stream)
        with (folder / BACKEND).open("x") as text:
            json.dump({"sharded_backend": "torch_dist", "sharded_backend_version": 1}, text)
    except FileExistsError as error:
        raise CheckpointError(f"{error.filename} exists already. It is left as it is: name another folder.") from error
    torch_file.create(folder / COMMON, dict(common))
    return holes


def _by_key(ranks: Sequence[Sequence[Shard]]) -> dict[str, list[Shard]]:
    groups: dict[str, list[Shard]] = {}
    for shards in ranks:
        for shard in shards:
            groups.setdefault(shard.key, []).append(shard)
    for key, group in groups.items():
        whole = group[0].global_shape
        parts = sum(math.prod(shard.shape) for shard in group)
        if (
            any((shard.global_shape, shard.dtype) != (whole, group[0].dtype) for shard in group)
            or not all(_inside(shard.offsets, shard.shape, whole) for shard in group)
            or len({shard.offsets for shard in group}) != len(group)
            or parts != math.prod(whole)
        ):
            raise CheckpointError(f"The shards of {key} do not make up one tensor of shape {whole}: {group!r:.500}.")
    return groups


def _global_tensor(entry: Any) -> GlobalTensor:
    chunks = tuple((_ints(chunk.offsets), _ints(chunk.sizes)) for chunk in entry.chunks)
    dtype = entry.properties.state[0]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{dtype!r} is no dtype")
    return GlobalTensor(_ints(entry.size), dtype, chunks)


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _inside(offsets: Sequence[int], shape: Sequence[int], whole: Sequence[int]) -> bool:
    return len(offsets) == len(shape) == len(whole) and all(
        0 <= first <= first + size <= end for first, size, end in zip(offsets, shape, whole, strict=True)
    )
