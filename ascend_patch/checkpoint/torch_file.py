"""Files of `torch.save`: where their tensors lie, and new ones with holes in the place of their tensors.

Such a file is a zip archive, nothing in it compressed: a pickle, whose tensors refer to storages, and a record for the
bytes of each storage.
"""

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ascend_patch.checkpoint import safe_pickle
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.stored import StoredTensor

_STORAGES = {
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
    "Byte": torch.uint8,
    "Char": torch.int8,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Short": torch.int16,
}


@dataclass(frozen=True)
class Strided:
    """A tensor that does not lie in its storage in row-major order, and so is no rectangle of bytes."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Storage:
    offset: int
    """In the file."""
    nbytes: int
    dtype: torch.dtype


def read(file: Path, *, start: int = 0, length: int | None = None, trust: bool = False) -> Any:
    """The object that was saved, with a `StoredTensor` for each tensor (a `Strided` where it is no rectangle of bytes).

    No tensor is read. Tensors that share a storage, as tied weights and the parameters in a buffer do, share its bytes.

    Args:
        file: the file.
        start, length: of the archive in the file, where the file holds more than it.
        trust: see `safe_pickle.load`.

    Raises:
        CheckpointError: not such an archive, damaged, or a pickle that is refused.
    """
    try:
        with file.open("rb") as stream:
            window = _Window(stream, start, length)
            if window.size < 0 or (length is not None and window.size < length):
                raise CheckpointError(
                    f"{file}: {length} bytes are expected at byte {start}, but it has only {start + window.size}: "
                    f"is it truncated?"
                )
            return _Archive(file, window, trust).load()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror or error}).") from error


def create(file: Path, state: Any) -> Any:
    """Write everything of a file of `torch.save` but the bytes of its tensors, for which it has holes.

    Args:
        file: a new file.
        state: what to save. Its tensors are on the meta device, contiguous, and of any size: none is allocated.

    Returns:
        `state` with a `StoredTensor` for each tensor.

    Raises:
        CheckpointError: the file exists.
    """
    try:
        with file.open("xb") as stream:
            append(stream, state)
    except FileExistsError as error:
        raise CheckpointError(f"{file} exists already. It is left as it is: name another folder.") from error
    return read(file)


def append(stream: IO[bytes], state: Any) -> None:
    """As `create`, at the position of an open file: what `read(…, start, length)` reads."""
    # Outside of its mode a fake tensor is pickled as a plain one, whose storage `skip_data` leaves out.
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype)

    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(_map(state, fake), stream)


def _map(value: Any, make: Callable[[torch.Tensor], Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return make(value)
    if type(value) is dict:
        return {key: _map(item, make) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(item, make) for item in value)
    return value


class _Archive:
    """One reading of one archive."""

    def __init__(self, file: Path, window: "_Window", trust: bool) -> None:
        self._file = file
        self._start = window.start
        self._size = window.size
        self._trust = trust
        self._stream = io.BufferedReader(window)
        try:
            self._records = {record.filename: record for record in zipfile.ZipFile(self._stream).infolist()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise CheckpointError(
                f"{file} is no zip archive ({error}). It is truncated, or was written by a PyTorch before 1.6."
            ) from error
        pickles = [name for name in self._records if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(f"{file} is a zip archive, but not one of torch.save: it has no data.pkl.")
        self._prefix = pickles[0].removesuffix("data.pkl")

    def load(self) -> Any:
        if f"{self._prefix}byteorder" in self._records and self._content("byteorder") != b"little":
            raise CheckpointError(f"{self._file} was written on a big-endian machine, which cannot be converted.")
        names = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_parameter": self._first,
            "torch._utils._rebuild_parameter_with_state": self._first,
            "torch._tensor._rebuild_from_type_v2": self._subclass,
            "torch.storage.UntypedStorage": torch.uint8,
            **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
        }
        stream = io.BytesIO(self._content("data.pkl"))
        return safe_pickle.load(stream, self._file, names=names, persistent=self._storage, trust=self._trust)

    def _content(self, name: str) -> bytes:
        offset, size = self._place(name)
        self._stream.seek(offset)
        return self._stream.read(size)

    def _place(self, name: str) -> tuple[int, int]:
        """Offset in the archive and size of a record. Its checksum may be missing: PyTorch can be told to skip it."""
        record = self._records.get(self._prefix + name)
        if record is None or record.header_offset < 0:
            raise CheckpointError(f"{self._file} has no record {name}: it is damaged.")
        if record.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self._file}: its record {name} is compressed, which torch.save never does.")
        # The name and the extra field may be longer here than in the directory.
        self._stream.seek(record.header_offset)
        header = self._stream.read(30)
        name_length, extra_length = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        offset = record.header_offset + 30 + name_length + extra_length
        if header[:4] != b"PK\x03\x04" or offset + record.file_size > self._size:
            raise CheckpointError(f"{self._file}: its record {name} is not inside of the archive: it is damaged.")
        return offset, record.file_size

    def _storage(self, pid: tuple) -> _Storage:
        _kind, dtype, key, _location, count = pid
        offset, size = self._place(f"data/{key}")
        if size // dtype.itemsize != count:
            raise CheckpointError(
                f"{self._file}: its record data/{key} has {size} bytes, but should have {count * dtype.itemsize}: it "
                f"is damaged."
            )
        return _Storage(self._start + offset, size, dtype)

    def _tensor(
        self, storage: _Storage, first: int, shape: tuple, stride: tuple, *_rest: Any
    ) -> StoredTensor | Strided:
        return self._typed_tensor(storage, first, shape, stride, None, None, storage.dtype)

    def _typed_tensor(
        self,
        storage: _Storage,
        first: int,
        shape: tuple,
        stride: tuple,
        _requires_grad: Any,
        _hooks: Any,
        dtype: torch.dtype,
        *_rest: Any,
    ) -> StoredTensor | Strided:
        shape, stride = tuple(shape), tuple(stride)
        natural = all(isinstance(number, int) and number >= 0 for number in (first, *shape))
        if not natural or not isinstance(dtype, torch.dtype) or not isinstance(storage, _Storage):
            raise CheckpointError(f"{self._file} has a tensor of dtype {dtype!r} and shape {shape!r}: it is damaged.")
        expected = 1
        for size, step in zip(reversed(shape), reversed(stride), strict=True):
            if size != 1 and step != expected and 0 not in shape:
                return Strided(shape, stride)
            expected *= size
        tensor = StoredTensor(self._file, storage.offset + first * dtype.itemsize, shape, dtype)
        if first * dtype.itemsize + tensor.nbytes > storage.nbytes:
            raise CheckpointError(
                f"{self._file}: a {dtype} tensor of shape {shape} is not inside of its storage of {storage.nbytes} "
                f"bytes at byte {storage.offset}: it is damaged."
            )
        return tensor

    def _first(self, data: Any, *_rest: Any) -> Any:
        return data

    def _subclass(self, make: Callable, _type: Any, args: tuple, _state: Any) -> Any:
        return make(*args)


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, stream: IO[bytes], start: int, length: int | None) -> None:
        end = stream.seek(0, io.SEEK_END)
        self._stream = stream
        self._position = 0
        self.start = start
        self.size = end - start if length is None else min(length, end - start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if position < 0:
            raise OSError("a position before the start of the archive")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self.start + self._position)
        data = self._stream.read(max(0, min(len(buffer), self.size - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
