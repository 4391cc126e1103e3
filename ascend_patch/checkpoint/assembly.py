"""Collects the pieces of the canonical tensors while Megatron-LM's tensors are found, or laid out, one by one."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from ascend_patch.checkpoint.dtypes import DTYPES
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.partition import Rectangle
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.checkpoint.stored import Checkpoint, Piece, StoredTensor


class Assembly:
    """A `Checkpoint` in the making."""

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._pieces: dict[str, list[Piece]] = {name: [] for name in shape.tensors()}
        self._fill: dict[str, list[Piece]] = {}
        # Rows of the canonical matrix; the only tensors with rows beyond are those of the padded vocabulary.
        self._rows = {name: size[0] if len(size) == 2 else 1 for name, size in shape.tensors().items()}

    def add(
        self, tensor: StoredTensor, rectangles: Iterable[Rectangle], *, top: int = 0, transposed: bool = False
    ) -> None:
        """Enter the rectangles that `tensor` consists of; its rows from `top` on are those that they count from."""
        for one in rectangles:
            (start, stop), end = one.rows, self._rows[one.name]
            row, col = one.at[0] + top, one.at[1]
            if start < end:
                at = (col, row) if transposed else (row, col)
                piece = Piece(tensor, (start, min(stop, end)), one.cols, at, transposed)
                self._pieces[one.name].append(piece)
            if stop > end:
                first = max(start, end)
                rest = Piece(tensor, (first, stop), one.cols, (row + first - start, col))
                self._fill.setdefault(one.name, []).append(rest)

    def checkpoint(self, folder: Path, dtype: torch.dtype | None = None) -> Checkpoint:
        """The checkpoint; without `dtype`, in the narrowest that holds all its tensors."""
        if dtype is None:
            (dtype, *others) = {piece.tensor.dtype for pieces in self._pieces.values() for piece in pieces}
            for other in others:
                dtype = torch.promote_types(dtype, other)
        return Checkpoint(folder, self._shape, dtype, self._pieces, self._fill)


class Faults:
    """What is wrong with the tensors of a checkpoint: all of it, in one error."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def missing(self, names: Iterable[str]) -> None:
        """Tensors that should be there."""
        self._add("missing", names)

    def left_over(self, names: Iterable[str]) -> None:
        """Tensors that no Mixtral or Mistral has."""
        self._add("left over", names)

    def fits(self, name: str, tensor: object, shape: Sequence[int]) -> bool:
        """Is `tensor` a stored one of this shape? If not, it is a fault."""
        if not isinstance(tensor, StoredTensor):
            self._add("no contiguous tensors", [f"{name} ({tensor!r:.80})"])
            return False
        return self.fits_shape(name, tensor.shape, tensor.dtype, shape)

    def fits_shape(self, name: str, found: Sequence[int], dtype: torch.dtype, shape: Sequence[int]) -> bool:
        """As :meth:`fits`."""
        if tuple(found) != tuple(shape):
            self._add("of another shape than the arguments say", [f"{name} {tuple(found)}, not {tuple(shape)}"])
            return False
        if dtype not in DTYPES:
            self._add(f"of a dtype that is not {', '.join(map(str, DTYPES))}", [f"{name} {dtype}"])
            return False
        return True

    def check(self, where: Path) -> None:
        """Raises:
        CheckpointError: there are faults.
        """
        if self._found:
            kinds = "; ".join(f"{kind}: {_some(names)}" for kind, names in self._found.items())
            raise CheckpointError(f"{where} is not the model that its arguments describe. Tensors {kinds}.")

    def _add(self, kind: str, names: Iterable[str]) -> None:
        for name in names:
            self._found.setdefault(kind, []).append(name)


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
