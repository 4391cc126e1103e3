"""Rows after a tensor's last: vocabulary padding and extra tokens, which begin as the mean of the rows that are there.

The mean is the usual start for tokens that a model has not seen: their logits are neither large nor all the same.
"""

from collections.abc import Iterator

import torch

from ascend_patch.checkpoint.blocks import BLOCK_BYTES, Buffer, Files, Matrix, runs
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.stored import Piece

ROWS_AT_ONCE = 256


class MeanRow:
    """The mean row of a tensor whose blocks are added one by one, and the rows that are filled with it."""

    def __init__(self, matrix: Matrix):
        self._matrix = matrix
        # Sums of weights are exact in float64, or so nearly that the rounded mean does not depend on their order.
        self._sum = torch.zeros(matrix.cols, dtype=torch.float64)

    def add(self, block: torch.Tensor) -> None:
        """Add the rows of ``block``."""
        for rows in block.split(ROWS_AT_ONCE):
            self._sum += rows.double().sum(0)

    def write(self, piece: Piece, files: Files) -> None:
        """Fill all rows of ``piece``."""
        for top, bottom, memory in self._rows(piece):
            for position, part in runs(piece, top, bottom, memory):
                files.write(piece.tensor.file, position, part)

    def check(self, piece: Piece, files: Files) -> None:
        """Does ``piece`` hold what :meth:`write` wrote?

        Raises:
            CheckpointError: it does not, or the file cannot be read.
        """
        for top, bottom, memory in self._rows(piece):
            found = Buffer(len(memory))
            for position, part in runs(piece, top, bottom, found.all()):
                files.read(piece.tensor.file, position, part)
            if found.all() != memory:
                raise CheckpointError(
                    f"{self._matrix.name}: rows {top} to {bottom - 1} in {piece.tensor.file} pad the vocabulary, "
                    f"but are not the mean of the others, with which they were filled."
                )

    def _rows(self, piece: Piece) -> Iterator[tuple[int, int, memoryview]]:
        """First row, last row + 1 and the bytes that belong there, in parts no larger than a block."""
        mean = (self._sum / self._matrix.rows).to(piece.tensor.dtype)[slice(*piece.cols)]
        step = max(1, BLOCK_BYTES // mean.nbytes)
        for top in range(*piece.rows, step):
            bottom = min(top + step, piece.rows[1])
            buffer = Buffer((bottom - top) * mean.nbytes)
            buffer.matrix(bottom - top, len(mean), mean.dtype).copy_(mean)
            yield top, bottom, buffer.all()
