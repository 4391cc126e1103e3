"""Row blocks of a canonical tensor: read from the rectangles it is stored in, written to those of another checkpoint.

A block is about `BLOCK_BYTES` large, however large the tensor: a thread that copies holds one block and one scratch
buffer. A value whose dtype stays is copied as the bytes it is; not even the payload of a NaN changes.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Self

import torch

from ascend_patch.checkpoint.dtypes import dtype_name
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.checkpoint.stored import Piece

BLOCK_BYTES = 16 << 20

_AS_INTEGER = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Matrix:
    """A canonical tensor as a matrix; a vector of n is (1, n)."""

    name: str
    rows: int
    cols: int
    dtype: torch.dtype

    @classmethod
    def of(cls, name: str, shape: Sequence[int], dtype: torch.dtype) -> "Matrix":
        """A tensor of one or two dimensions."""
        rows, cols = (1, *shape)[-2:]
        return cls(name, rows, cols, dtype)

    @property
    def nbytes(self) -> int:
        return self.rows * self.cols * self.dtype.itemsize


def matrices(shape: ModelShape, dtype: torch.dtype) -> dict[str, Matrix]:
    """All canonical tensors of a model."""
    return {name: Matrix.of(name, dimensions, dtype) for name, dimensions in shape.tensors().items()}


class Buffer:
    """Memory that is seen as a matrix by torch and as bytes by the operating system."""

    def __init__(self, nbytes: int):
        self._bytes = bytearray(nbytes)

    def matrix(self, rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
        """The first bytes as a matrix [rows, cols]."""
        return torch.frombuffer(self._bytes, dtype=dtype, count=rows * cols).view(rows, cols)

    def memory(self, part: torch.Tensor) -> memoryview:
        """The bytes of a contiguous part of :meth:`matrix`."""
        start = part.storage_offset() * part.itemsize
        return self.all()[start : start + part.nbytes]

    def all(self) -> memoryview:
        """All bytes."""
        return memoryview(self._bytes)


class Files:
    """The files of one tensor, opened when first used and closed together; errors begin with the tensor's name."""

    def __init__(self, name: str, flags: int):
        self._name = name
        self._flags = flags
        self._open: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def read(self, path: Path, position: int, memory: memoryview) -> None:
        """Fill ``memory``, and let the kernel forget the bytes: looking for room for others costs time.

        Raises:
            CheckpointError: the file cannot be read, or ends too early.
        """
        try:
            start, length = position, len(memory)
            while memory:
                count = os.preadv(self._descriptor(path), [memory], position)
                if not count:
                    raise CheckpointError(
                        f"{self._name}: {path} ends at byte {os.path.getsize(path):,}, but should hold a part of the "
                        f"tensor at byte {position:,}: it is truncated. Copy or download it again."
                    )
                memory, position = memory[count:], position + count
            with suppress(OSError):  # of a file system that does not know it: it is advice
                os.posix_fadvise(self._descriptor(path), start, length, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise CheckpointError(f"{self._name}: {path} cannot be read: {error.strerror}.") from error

    def write(self, path: Path, position: int, memory: memoryview) -> None:
        """Write all of ``memory``.

        Raises:
            CheckpointError: the file cannot be written; a full disk is called that.
        """
        try:
            while memory:
                count = os.pwrite(self._descriptor(path), memory, position)
                memory, position = memory[count:], position + count
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CheckpointError(
                    f"{self._name}: {path} cannot be written: {error.strerror}. "
                    f"Make room and run the same command again; it continues where it stopped."
                ) from error
            raise CheckpointError(f"{self._name}: {path} cannot be written: {error.strerror}.") from error

    def _descriptor(self, path: Path) -> int:
        if path not in self._open:
            self._open[path] = os.open(path, self._flags)
        return self._open[path]


def split_replicas(matrix: Matrix, pieces: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Pieces that cover ``matrix`` exactly once, and those that repeat one of them.

    Raises:
        CheckpointError: a piece lies outside of the tensor, two overlap without being the same rectangle, or a part
            of the tensor is in no piece.
    """
    distinct: dict[tuple[tuple[int, int], tuple[int, int]], Piece] = {}
    replicas = []
    for piece in pieces:
        (top, bottom), (left, right) = piece.rows, piece.cols
        if not (0 <= top <= bottom <= matrix.rows and 0 <= left <= right <= matrix.cols):
            raise CheckpointError(
                f"{matrix.name} has shape {matrix.rows} x {matrix.cols}, but {piece.tensor.file} holds "
                f"{_where(piece)} of it: the checkpoint does not fit its own description."
            )
        if distinct.setdefault((piece.rows, piece.cols), piece) is not piece:
            replicas.append(piece)
    for one, other in combinations(distinct.values(), 2):
        if _overlap(one.rows, other.rows) and _overlap(one.cols, other.cols):
            raise CheckpointError(
                f"{matrix.name}: {_where(one)} in {one.tensor.file} and {_where(other)} in {other.tensor.file} "
                f"overlap: the checkpoint does not fit its own description."
            )
    covered = sum(height * width for height, width in (piece.size for piece in distinct.values()))
    if covered != matrix.rows * matrix.cols:
        raise CheckpointError(
            f"{matrix.name}: only {covered:,} of its {matrix.rows * matrix.cols:,} elements are stored. "
            f"The checkpoint is incomplete."
        )
    return list(distinct.values()), replicas


class BlockReader:
    """Reads a canonical tensor block by block, converted to the dtype of ``matrix``; replicas are compared on the way.

    Raises:
        CheckpointError: see :func:`split_replicas`.
    """

    def __init__(self, matrix: Matrix, pieces: Sequence[Piece], files: Files):
        self._matrix = matrix
        self._files = files
        self._pieces, self._replicas = split_replicas(matrix, pieces)
        itemsize = max(matrix.dtype.itemsize, *(piece.tensor.dtype.itemsize for piece in pieces))
        self.rows_per_block = min(matrix.rows, max(1, BLOCK_BYTES // (matrix.cols * itemsize)))
        self.buffer = Buffer(self.rows_per_block * matrix.cols * matrix.dtype.itemsize)
        self._scratch = Buffer(self.rows_per_block * matrix.cols * itemsize)

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields the first row and the block, which is valid until the next one is asked for.

        Raises:
            CheckpointError: a file cannot be read, a number does not fit the dtype, or replicas differ.
        """
        for start in range(0, self._matrix.rows, self.rows_per_block):
            rows = min(self.rows_per_block, self._matrix.rows - start)
            block = self.buffer.matrix(rows, self._matrix.cols, self._matrix.dtype)
            for piece, top, bottom in _within(self._pieces, start, start + rows):
                self._read(piece, top, bottom, _part(block, start, piece, top, bottom))
            for piece, top, bottom in _within(self._replicas, start, start + rows):
                self._compare(piece, top, bottom, _part(block, start, piece, top, bottom))
            yield start, block

    def _read(self, piece: Piece, top: int, bottom: int, part: torch.Tensor) -> None:
        if piece.tensor.dtype == part.dtype and part.is_contiguous() and not piece.transposed:
            self._fill(piece, top, bottom, self.buffer.memory(part))
        else:
            stored = self._stored(piece, top, bottom)
            if stored.dtype == part.dtype:
                _bits(part).copy_(_bits(stored))
            else:
                part.copy_(stored)
                self._check_overflow(piece, stored, part)

    def _compare(self, piece: Piece, top: int, bottom: int, part: torch.Tensor) -> None:
        stored = self._stored(piece, top, bottom)
        if not torch.equal(_bits(stored.to(part.dtype)), _bits(part)):
            same = next(other for other in self._pieces if (other.rows, other.cols) == (piece.rows, piece.cols))
            raise CheckpointError(
                f"{self._matrix.name}: {_where(piece)} is stored twice, in {same.tensor.file} and in "
                f"{piece.tensor.file}, and the two differ. One of the files is damaged or of another iteration."
            )

    def _stored(self, piece: Piece, top: int, bottom: int) -> torch.Tensor:
        """Rows of a piece in its own dtype, in the scratch buffer."""
        shape = (bottom - top, piece.size[1])
        stored = self._scratch.matrix(*(shape[::-1] if piece.transposed else shape), piece.tensor.dtype)
        self._fill(piece, top, bottom, self._scratch.memory(stored))
        return stored.T if piece.transposed else stored

    def _fill(self, piece: Piece, top: int, bottom: int, memory: memoryview) -> None:
        for position, run in runs(piece, top, bottom, memory):
            self._files.read(piece.tensor.file, position, run)

    def _check_overflow(self, piece: Piece, stored: torch.Tensor, converted: torch.Tensor) -> None:
        if all(torch.isfinite(bound) for bound in torch.aminmax(converted)):
            return
        # Infinities and NaNs of the source stay what they are.
        lost = stored[converted.isinf() & stored.isfinite()]
        if lost.numel():
            raise CheckpointError(
                f"{self._matrix.name}: {lost.numel()} numbers of {_where(piece)} in {piece.tensor.file}, such as "
                f"{lost[0].item():g}, do not fit {dtype_name(converted.dtype)}. Use --params-dtype bf16 or fp32."
            )


class BlockWriter:
    """Writes blocks to the pieces of a new checkpoint.

    Raises:
        CheckpointError: see :func:`split_replicas`.
    """

    def __init__(self, matrix: Matrix, pieces: Sequence[Piece], files: Files):
        split_replicas(matrix, pieces)
        self._pieces = pieces
        self._files = files

    def write(self, start: int, block: torch.Tensor, buffer: Buffer) -> None:
        """Write ``block``, which begins at row ``start`` and lies in ``buffer``.

        Raises:
            CheckpointError: a file cannot be written.
        """
        for piece, top, bottom in _within(self._pieces, start, start + block.shape[0]):
            part = _part(block, start, piece, top, bottom)
            if part.is_contiguous():
                memory = buffer.memory(part)
            else:
                packed = Buffer(part.nbytes)
                _bits(packed.matrix(bottom - top, piece.size[1], part.dtype)).copy_(_bits(part))
                memory = packed.all()
            for position, run in runs(piece, top, bottom, memory):
                self._files.write(piece.tensor.file, position, run)


def runs(piece: Piece, top: int, bottom: int, memory: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Where rows ``top`` to ``bottom`` (of the canonical tensor) of a piece lie in its file.

    Yields:
        The position in the file, and the part of ``memory``, which holds these rows alone, that belongs there.
    """
    tensor, (row, col) = piece.tensor, piece.at
    height, width = bottom - top, piece.size[1]
    if piece.transposed:
        col += top - piece.rows[0]
        height, width = width, height
    else:
        row += top - piece.rows[0]
    runs, length = (1, height * width) if width == tensor.cols else (height, width)
    length *= tensor.dtype.itemsize
    for index in range(runs):
        yield tensor.position(row + index, col), memory[index * length : (index + 1) * length]


def _within(pieces: Sequence[Piece], start: int, stop: int) -> Iterator[tuple[Piece, int, int]]:
    """The pieces that have rows in [start, stop), with the first and the last + 1 of these rows."""
    for piece in pieces:
        top, bottom = max(start, piece.rows[0]), min(stop, piece.rows[1])
        if top < bottom:
            yield piece, top, bottom


def _part(block: torch.Tensor, start: int, piece: Piece, top: int, bottom: int) -> torch.Tensor:
    return block[top - start : bottom - start, slice(*piece.cols)]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Integers of the same bits: copied and compared without looking at the numbers."""
    return tensor.view(_AS_INTEGER[tensor.itemsize])


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _where(piece: Piece) -> str:
    return f"[{piece.rows[0]}:{piece.rows[1]}, {piece.cols[0]}:{piece.cols[1]}]"
