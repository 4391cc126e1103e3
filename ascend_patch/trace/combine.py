"""What the ranks of a run hold, put together so that runs of different layouts can be compared.

Ranks of equal layouts are compared one by one. Otherwise the digests of all ranks that hold parts of a tensor are
combined, over the samples that make up whole micro-batches in both runs:

- A module's outputs are known by the samples of the global batch they belong to, those of experts by the samples of all
  data parallel ranks, whose tokens experts mix.
- Of parameters' gradients, copies are left out. Whether tensor parallel ranks hold parts of an output or copies is
  not known here: the counts of two runs tell.
- Where several pipeline stages have a module of the same name, the last one counts: only its output is the model's.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ascend_patch.trace.store import FORWARD, GRADIENT, Digest, Layout, RankTrace, Record, is_expert


class Place(NamedTuple):
    """What is compared: a tensor of one step.

    Attributes:
        direction, name, output, call: see :class:`Record`.
        first_sample, samples: which of the global batch; 0 and 0 of a parameter.
        rank: the only one that is meant, where the layouts are equal.
    """

    direction: str
    name: str
    output: int
    call: int
    first_sample: int
    samples: int
    rank: int | None


@dataclass(frozen=True)
class Held:
    """A tensor as one of the runs holds it.

    Attributes:
        digest: of all parts, or of all copies as if they were parts.
        copies: how many there are of each element, if these are copies.
        terms: whether the ranks hold terms of a sum.
        ranks: that hold something of it.
        order: for sorting: when the run came to it within its micro-batch.
    """

    digest: Digest
    copies: int
    terms: bool
    ranks: tuple[int, ...]
    order: tuple[int, int]


def held(ranks: Sequence[RankTrace], other: Layout) -> dict[Place, Held]:
    """What a run holds, to be compared with a run of layout ``other``."""
    parts: dict[Place, list[_Part]] = {}
    for rank in ranks:
        for part in _parts(rank):
            if rank.layout == other or not _is_copy(part):
                parts.setdefault(_place(part, other), []).append(part)
    return {place: _held(found, other) for place, found in parts.items()}


def combined(digests: Sequence[Digest]) -> Digest:
    """The digest of several tensors as one; a single one keeps its hash."""
    if len(digests) == 1:
        return digests[0]
    return Digest(
        sum(one.count for one in digests),
        sum(one.total for one in digests),
        sum(one.square for one in digests),
        _largest(one.largest for one in digests),
    )


def _largest(values: Iterable[float]) -> float:
    """Not a number if one of them is not."""
    values = list(values)
    return math.nan if any(map(math.isnan, values)) else max(values, default=0.0)


@dataclass(frozen=True)
class _Part:
    """A record with its rank, its pipeline stage of all stages, and its place among the records of its pass."""

    rank: RankTrace
    record: Record
    stage: int
    position: int


def _parts(rank: RankTrace) -> Iterator[_Part]:
    passes: dict[tuple[str, int, int], int] = {}
    for record in rank.records:
        key = (record.direction, record.chunk, record.micro_batch)
        position = passes[key] = passes.get(key, -1) + 1
        yield _Part(rank, record, record.chunk * rank.layout.pipeline + rank.coordinates.pipeline, position)


def _is_copy(part: _Part) -> bool:
    """Whether another rank holds the same gradient of a parameter."""
    record, at = part.record, part.rank.coordinates
    if record.direction != GRADIENT:
        return False
    if is_expert(record.name):
        tensor, data = at.expert_tensor, at.expert_data
    else:
        tensor, data = at.tensor, at.data + at.context
    return bool((tensor and "tp" not in record.placement) or (data and "dp" not in record.placement))


def _place(part: _Part, other: Layout) -> Place:
    record, layout = part.record, part.rank.layout
    rank = part.rank.rank if layout == other else None
    if record.direction == GRADIENT:
        return Place(record.direction, record.name, record.output, record.call, 0, 0, rank)
    first = record.micro_batch * layout.data * layout.micro_batch_size
    if is_expert(record.name):
        samples = math.lcm(*(one.data * one.micro_batch_size for one in (layout, other)))
    else:
        first += part.rank.coordinates.data * layout.micro_batch_size
        samples = math.lcm(layout.micro_batch_size, other.micro_batch_size)
    return Place(record.direction, record.name, record.output, record.call, first // samples * samples, samples, rank)


def _held(parts: Sequence[_Part], other: Layout) -> Held:
    last = max(part.stage for part in parts)
    parts = [part for part in parts if part.stage == last]
    record, layout = parts[0].record, parts[0].rank.layout
    alone = layout == other or record.direction == GRADIENT
    copies = layout.expert_tensor if is_expert(record.name) else layout.tensor
    return Held(
        combined([part.record.digest for part in parts]),
        copies=1 if alone else copies,
        terms=not alone and "partial" in record.placement,
        ranks=tuple(sorted({part.rank.rank for part in parts})),
        order=(last if record.direction == FORWARD else -last, min(part.position for part in parts)),
    )
