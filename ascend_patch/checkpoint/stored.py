"""What a checkpoint of any format is to the conversion: rectangles of bytes at known offsets in files.

A reader finds the rectangles of a checkpoint that exists. A writer makes the files with all their metadata and holes
where the data goes, and returns the rectangles of the holes. The engine copies from the ones to the others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.shape import ModelShape


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: row-major, contiguous, little-endian.

    As a matrix, all its dimensions but the last are rows; a vector of n is the matrix (1, n).
    """

    file: Path
    offset: int
    """Of its first byte in the file."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def cols(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def position(self, row: int, col: int = 0) -> int:
        """Where element (row, col) of the matrix begins in the file."""
        return self.offset + (row * self.cols + col) * self.dtype.itemsize

    def view(self, *shape: int) -> "StoredTensor":
        """The same bytes with another shape.

        Raises:
            CheckpointError: the shape holds another number of elements.
        """
        if math.prod(shape) != math.prod(self.shape):
            raise CheckpointError(
                f"{self.file}: a tensor of shape {self.shape} at byte {self.offset} cannot be seen as {shape}."
            )
        return StoredTensor(self.file, self.offset, shape, self.dtype)


@dataclass(frozen=True)
class Piece:
    """A rectangle of a canonical tensor, and where it lies in a stored one."""

    tensor: StoredTensor
    rows: tuple[int, int]
    """Start and stop in the canonical matrix; of a vector (0, 1)."""
    cols: tuple[int, int]
    """Start and stop in the canonical matrix."""
    at: tuple[int, int] = (0, 0)
    """Row and column of the rectangle's first element in the stored matrix."""
    transposed: bool = False
    """Reading only: the stored matrix holds the rectangle's transpose (the grouped experts of releases before 0.17)."""

    def __post_init__(self) -> None:
        height, width = self.size[::-1] if self.transposed else self.size
        row, col = self.at
        if not (0 <= row <= row + height <= self.tensor.rows and 0 <= col <= col + width <= self.tensor.cols):
            raise CheckpointError(
                f"{self.tensor.file}: a rectangle of {height} x {width} at {self.at} is not inside of the tensor of "
                f"shape {self.tensor.shape} at byte {self.tensor.offset}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the rectangle in the canonical matrix."""
        return self.rows[1] - self.rows[0], self.cols[1] - self.cols[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.tensor.dtype.itemsize


@dataclass(frozen=True)
class Checkpoint:
    """What every reader and every writer returns.

    The pieces of a canonical tensor cover it completely. Of a checkpoint that is read they may repeat regions (the
    replicas of several ranks; the engine compares them). Of a new one each piece is written.
    """

    folder: Path
    shape: ModelShape
    dtype: torch.dtype
    pieces: Mapping[str, Sequence[Piece]]
    """Canonical name -> its rectangles."""
    fill: Mapping[str, Sequence[Piece]] = field(default_factory=dict)
    """Writing only: rows beyond the source's vocabulary (padding and extra tokens)."""

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces: what a reader reads, or a writer writes."""
        return sum(piece.nbytes for group in (self.pieces, self.fill) for pieces in group.values() for piece in pieces)
