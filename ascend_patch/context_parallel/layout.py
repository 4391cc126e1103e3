"""The order in which the ranks hold a sequence, and that of the sequence itself."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Pieces(NamedTuple):
    """What the ranks of a group hold, one after the other, cut where the order changes."""

    sizes: list[int]
    """Lengths of the pieces, in the order of the ranks."""
    order: list[int]
    """Which of them is first in the sequence, which second, and so on."""

    @classmethod
    def of(cls, lengths: Sequence[int], ranks: int) -> "Pieces":
        """Sequences of these lengths, one after the other, shared by so many ranks.

        Raises:
            ValueError: a length is not a multiple of ``2 * ranks``.
        """
        pieces = [piece_length(length, ranks) for length in lengths]
        sizes = [piece for _ in range(ranks) for piece in pieces for _ in range(2)]
        order = []
        for i in range(len(lengths)):
            first = [(rank * len(lengths) + i) * 2 for rank in range(ranks)]
            order += first + [piece + 1 for piece in reversed(first)]
        return cls(sizes, order)

    def to_sequence(self, t: Tensor) -> Tensor:
        """The pieces, along the first dimension, in the order of the sequence; differentiable."""
        pieces = t.split(self.sizes)
        return torch.cat([pieces[i] for i in self.order])

    def to_ranks(self, t: Tensor) -> Tensor:
        """The inverse of :meth:`to_sequence`."""
        pieces = t.split([self.sizes[i] for i in self.order])
        return torch.cat([piece for _, piece in sorted(zip(self.order, pieces, strict=True), key=lambda pair: pair[0])])


def positions_of_rank(cu_seqlens: Sequence[int], ranks: int, rank: int) -> Tensor:
    """Which positions of packed sequences a rank holds: ``thd_get_partitioned_indices`` of TransformerEngine.

    Args:
        cu_seqlens: where the sequences begin and end, from 0 to the number of positions ``t``.

    Returns:
        ``[t / ranks]`` int64, ascending.

    Raises:
        ValueError: the length of a sequence is not a multiple of ``2 * ranks``.
    """
    pieces = Pieces.of([end - start for start, end in pairwise(cu_seqlens)], ranks)
    return pieces.to_ranks(torch.arange(cu_seqlens[-1])).chunk(ranks)[rank]


def piece_length(length: int, ranks: int) -> int:
    """A sequence's length over the number of pieces that it is cut into.

    Raises:
        ValueError: the length is not a multiple of ``2 * ranks``.
    """
    piece, rest = divmod(length, 2 * ranks)
    if rest:
        raise ValueError(
            f"A sequence of {length} tokens cannot be shared by {ranks} context parallel ranks: its length must be a "
            f"multiple of {2 * ranks}. Pad the sequences when packing them."
        )
    return piece
