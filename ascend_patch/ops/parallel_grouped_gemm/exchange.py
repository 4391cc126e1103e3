"""Which rows go where in an all-to-all between expert parallel ranks, and the orders that rows are kept in.

Before the exchange a rank has its rows *by rank*: for each rank of the group, those of each of its experts. Afterwards
it has what it received *by expert*: for each of its own experts, those from each rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Exchange:
    """What all ranks of a group send to the experts of all.

    Attributes:
        group: the ``P`` ranks, each with ``E`` experts.
        rows: ``[P][P * E]``: how many rows each rank has for each expert, on the host and the same on every rank.

    Raises:
        ValueError: there is not a row of counts for each rank, or the experts cannot be shared equally.
    """

    group: ProcessGroup
    rows: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        size, lengths = self.group.size(), {len(row) for row in self.rows}
        if len(self.rows) != size or len(lengths) != 1 or not min(lengths) or min(lengths) % size:
            raise ValueError(
                f"Exchange: {len(self.rows)} lists of {sorted(lengths)} counts for {size} ranks; there must be one a "
                "rank, all of as many counts: a multiple of the ranks."
            )

    @property
    def experts(self) -> int:
        """``E``: experts of a rank."""
        return len(self.rows[0]) // len(self.rows)

    @cached_property
    def pairs(self) -> list[list[int]]:
        """``[P][P]``: rows that each rank has for each."""
        starts = range(0, len(self.rows[0]), self.experts)
        return [[sum(row[start : start + self.experts]) for start in starts] for row in self.rows]

    @cached_property
    def sent(self) -> list[list[int]]:
        """``[P][E]``: rows that this rank has for each expert of each rank."""
        own, experts = list(self.rows[self.group.rank()]), self.experts
        return [own[start : start + experts] for start in range(0, len(own), experts)]

    @cached_property
    def received(self) -> list[list[int]]:
        """``[P][E]``: rows that each rank has for each expert of this rank."""
        first = self.group.rank() * self.experts
        return [list(row[first : first + self.experts]) for row in self.rows]

    @cached_property
    def rows_per_expert(self) -> list[int]:
        """``[E]``: rows of each expert of this rank."""
        return [sum(column) for column in zip(*self.received, strict=True)]
