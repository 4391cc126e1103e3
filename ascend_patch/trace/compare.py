"""Where two traces begin to differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.trace.combine import Held, Place, held
from ascend_patch.trace.store import DIRECTIONS, Digest, RankTrace

TOLERANCE = 1e-4
"""Where layouts or devices differ. In float32 such runs differ by some 1e-6 in their first step."""


@dataclass(frozen=True)
class Difference:
    """A tensor that differs.

    Attributes:
        a, b: its digests, each element counted once.
        ranks_a, ranks_b: that hold it.
        amounts: see :func:`amounts`; fewer where ranks hold terms of a sum.
    """

    step: int
    place: Place
    a: Digest
    b: Digest
    ranks_a: tuple[int, ...]
    ranks_b: tuple[int, ...]
    amounts: Mapping[str, float]


@dataclass(frozen=True)
class StepComparison:
    """Of one step.

    Attributes:
        compared: number of tensors.
        tolerance: that was applied; None: hashes were compared.
        differences: in order of execution, all forward passes first.
        only_a, only_b: names that the other does not have.
        largest: of all amounts.
    """

    step: int
    compared: int
    tolerance: float | None
    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    largest: float


def compare(a: Sequence[RankTrace], b: Sequence[RankTrace], tolerance: float | None = None) -> StepComparison:
    """Compare all ranks of one step of two runs.

    Args:
        tolerance: largest amount (see :func:`amounts`) that is no difference. None: hashes are compared if layouts and
            devices are equal, otherwise :data:`TOLERANCE` applies.

    Raises:
        AscendPatchError: the batches are not the same, or nothing has the same name.
    """
    step, layouts = a[0].step, (a[0].layout, b[0].layout)
    if layouts[0].samples != layouts[1].samples:
        raise AscendPatchError(
            f"Step {step} has {layouts[0].samples} samples in A and {layouts[1].samples} in B. Trace runs with the "
            "same --global-batch-size."
        )
    if tolerance is None and (layouts[0] != layouts[1] or a[0].device != b[0].device):
        tolerance = TOLERANCE
    held_a, held_b = held(a, layouts[1]), held(b, layouts[0])
    common = held_a.keys() & held_b.keys()
    if not common:
        raise AscendPatchError(f"Nothing in step {step} has the same name in A and B. Are they of the same model?")
    found, largest = [], 0.0
    for place in common:
        x, y = held_a[place], held_b[place]
        difference = Difference(step, place, *_reconciled(x, y), x.ranks, y.ranks, _amounts(x, y))
        worst = max(difference.amounts.values())
        largest = max(largest, worst)
        if (difference.a.hash != difference.b.hash) if tolerance is None else worst > tolerance:
            found.append(difference)
    # Samples that both runs compute at one time; within them, the order is that of the modules.
    together = math.lcm(*(layout.data * layout.micro_batch_size for layout in layouts))

    def order(difference: Difference) -> tuple:
        place = difference.place
        direction, batch = DIRECTIONS.index(place.direction), place.first_sample // together
        return direction, batch, held_a[place].order, place.first_sample, place.rank or 0, place

    names_a, names_b = ({place.name for place in one} for one in (held_a, held_b))
    only = tuple(sorted(names_a - names_b)), tuple(sorted(names_b - names_a))
    return StepComparison(step, len(common), tolerance, tuple(sorted(found, key=order)), *only, largest)


def amounts(a: Digest, b: Digest) -> dict[str, float]:
    """How far each quantity of two digests differs: 0 is not at all, infinite is that one is not a number.

    Each is relative to the larger one; the means are relative to the root mean square. Neither mean nor norm differs
    more than the tensors themselves do: the norm of their difference, relative to theirs.
    """
    scale = max(_rms(a), _rms(b))
    return {
        "count": _relative(a.count, b.count),
        "mean": _relative(a.mean, b.mean, scale),
        "norm": _relative(a.norm, b.norm),
        "largest": _relative(a.largest, b.largest),
    }


def _amounts(a: Held, b: Held) -> dict[str, float]:
    x, y = _reconciled(a, b)
    if not (a.terms or b.terms):
        return amounts(x, y)
    # Of terms of a sum, nothing else can be combined.
    return {"count": _relative(x.count, y.count), "mean": _relative(x.mean, y.mean, min(_rms(x), _rms(y)))}


def _rms(digest: Digest) -> float:
    return math.sqrt(digest.square / digest.count) if digest.count else 0.0


def _relative(a: float, b: float, scale: float | None = None) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    scale = max(abs(a), abs(b)) if scale is None else scale
    amount = abs(a - b) / scale if scale else math.inf
    return math.inf if math.isnan(amount) else amount


def _reconciled(a: Held, b: Held) -> tuple[Digest, Digest]:
    """The digests, with each element counted once where the counts say that there are copies."""

    def mismatch(copies: tuple[int, int]) -> float:
        return _relative(a.digest.count / copies[0], b.digest.count / copies[1])

    choices = product(sorted({1, a.copies}), sorted({1, b.copies}))
    copies = min(choices, key=mismatch)
    return _once(a, copies[0]), _once(b, copies[1])


def _once(one: Held, copies: int) -> Digest:
    digest = one.digest
    if copies == 1:
        return digest
    total = digest.total if one.terms else digest.total / copies
    return Digest(digest.count // copies, total, digest.square / copies, digest.largest)
