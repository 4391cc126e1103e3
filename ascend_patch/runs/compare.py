"""Compares two runs, quantity by quantity and iteration by iteration."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ascend_patch.runs.run import (
    BATCH_SIZE,
    GRAD_NORM,
    LEARNING_RATE,
    LOSS,
    Run,
    RunError,
    Sample,
    iterations_text,
    ranges,
)

_SETTINGS = (LEARNING_RATE, BATCH_SIZE, "consumed samples")
# What differs between equal trainings anyway: places, names, what is printed or saved when, and what upstream works
# out itself after it has printed its arguments and before it records them for TensorBoard.
_INCIDENTAL = re.compile(
    r"(^|_)(save|load|dir|path|file|files|prefix|rank|addr|port|name|log|tensorboard|wandb|timing|profile|exit|"
    r"interval|timeout|finetune|device|devices|start|iteration|consumed|override|far|padded|decay_iters)(_|$)"
)


@dataclass(frozen=True)
class Tolerance:
    """How far a number of B may be from that of A: ``absolute + relative * abs(a)``, as in ``torch.allclose``."""

    relative: float = 0.0
    absolute: float = 0.0

    def __str__(self) -> str:
        parts = [f"{100 * self.relative:g} %"] * bool(self.relative) + [f"{self.absolute:g}"] * bool(self.absolute)
        return " + ".join(parts) or "exact"


@dataclass(frozen=True)
class Pair:
    """What two runs logged about the same iterations."""

    a: Sample
    b: Sample

    @property
    def difference(self) -> float:
        """B less A."""
        if self.agree_beyond_numbers:
            return 0.0
        return self.b.value - self.a.value

    @property
    def relative(self) -> float:
        """The difference as a part of A; infinite if A is 0 and B is not."""
        if self.difference == 0:
            return 0.0
        return self.difference / abs(self.a.value) if self.a.value else math.copysign(math.inf, self.difference)

    @property
    def agree_beyond_numbers(self) -> bool:
        """Both are NaN, or the same infinity."""
        a, b = self.a.value, self.b.value
        return (math.isnan(a) and math.isnan(b)) or (math.isinf(a) and a == b)

    @property
    def rounding(self) -> float:
        """What is no difference: rounding in print, where the two were not computed from print in the same way."""
        return 0.0 if self.a.parts == self.b.parts else self.a.rounding + self.b.rounding

    def is_within(self, tolerance: Tolerance) -> bool:
        """Whether B is close enough to A. Nothing but itself is close to NaN or an infinity."""
        if not math.isfinite(self.a.value):
            return self.agree_beyond_numbers
        return abs(self.difference) <= tolerance.absolute + tolerance.relative * abs(self.a.value) + self.rounding


@dataclass(frozen=True)
class Quantity:
    """The comparison of one quantity.

    Attributes:
        pairs: in the order of the iterations.
        tolerance: None if this quantity is shown and not judged.
    """

    name: str
    pairs: Sequence[Pair]
    tolerance: Tolerance | None

    @property
    def compared(self) -> int:
        """Iterations that were compared."""
        return sum(len(pair.a.iterations) for pair in self.pairs)

    @property
    def largest(self) -> Pair:
        """The pair that differs most in relation to A; NaN on one side is more than any number."""
        return max(self.pairs, key=lambda pair: math.inf if math.isnan(pair.relative) else abs(pair.relative))

    @property
    def mean_relative(self) -> float:
        """The mean of the absolute relative differences."""
        return sum(abs(pair.relative) for pair in self.pairs) / len(self.pairs)

    @property
    def first_beyond(self) -> Pair | None:
        """The first pair that is not within the tolerance."""
        tolerance = self.tolerance
        if tolerance is None:
            return None
        return next((pair for pair in self.pairs if not pair.is_within(tolerance)), None)


@dataclass(frozen=True)
class Comparison:
    """Two runs, compared.

    Attributes:
        quantities: those that both runs have, the language-model loss first.
        settings: sentences about what was not the same for both, and how.
        notes: sentences about what could not be compared.
    """

    a: Run
    b: Run
    quantities: Sequence[Quantity]
    settings: Sequence[str]
    notes: Sequence[str]

    @property
    def first_beyond(self) -> Quantity | None:
        """The quantity that is beyond its tolerance in the earliest iteration; None if none is."""
        beyond = [(pair.a.last, quantity) for quantity in self.quantities if (pair := quantity.first_beyond)]
        return min(beyond, key=lambda entry: entry[0])[1] if beyond else None


DEFAULT = Tolerance(relative=0.01)
"""For losses: what bfloat16 may cost."""
DEFAULT_GRAD_NORM = Tolerance(relative=0.1, absolute=0.001)
"""Noisier than the loss, and logged with three decimals."""


def compare(a: Run, b: Run, tolerances: Mapping[str, Tolerance | None] | None = None) -> Comparison:
    """Compare B with A.

    Args:
        tolerances: by quantity; "" is that of all others. None as a tolerance: show, do not judge. What is not named
            has a default: :data:`DEFAULT`, or :data:`DEFAULT_GRAD_NORM`.

    Raises:
        RunError: the runs have no iteration in common, or a quantity is named that they do not both have.
    """
    tolerances = tolerances or {}
    quantities = []
    for name in _in_order(a.samples.keys() & b.samples.keys()):
        judged = name in tolerances or name == GRAD_NORM or name.endswith(("loss", "loss validation", "loss test"))
        pairs = list(pairs_of(a.samples[name], b.samples[name])) if judged else []
        if pairs:
            quantities.append(Quantity(name, pairs, _tolerance(name, tolerances)))
    if not any(quantity.name == LOSS for quantity in quantities):
        raise RunError(
            f"There is nothing to compare: {a.path} has losses of iterations {ranges(a.iterations()) or '(none)'}, "
            f"{b.path} of {ranges(b.iterations()) or '(none)'}. Name two runs of the same training."
        )
    for name in sorted(tolerances.keys() - {"", *(quantity.name for quantity in quantities)}):
        raise RunError(
            f"A tolerance is given for `{name}`, which cannot be compared. Both runs have: "
            f"{', '.join(_in_order(a.samples.keys() & b.samples.keys()))}."
        )
    return Comparison(a, b, quantities, list(_settings(a, b)), list(_notes(a, b, quantities)))


def pairs_of(a: Sequence[Sample], b: Sequence[Sample]) -> Iterator[Pair]:
    """Samples over the same iterations; where one run logged more often, the mean of its samples."""
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i].first != b[j].first:
            i, j = (i + 1, j) if a[i].first < b[j].first else (i, j + 1)
            continue
        from_i, from_j = i, j
        i, j = i + 1, j + 1
        while a[i - 1].last != b[j - 1].last:
            if a[i - 1].last < b[j - 1].last:
                if i == len(a) or a[i].first != a[i - 1].last + 1:
                    break
                i += 1
            else:
                if j == len(b) or b[j].first != b[j - 1].last + 1:
                    break
                j += 1
        else:
            yield Pair(Sample.mean(a[from_i:i]), Sample.mean(b[from_j:j]))


def _in_order(names: Iterable[str]) -> list[str]:
    first = [LOSS, GRAD_NORM]
    return sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name))


def _tolerance(name: str, tolerances: Mapping[str, Tolerance | None]) -> Tolerance | None:
    default = DEFAULT_GRAD_NORM if name == GRAD_NORM else DEFAULT
    return tolerances.get(name, tolerances.get("", default))


def _settings(a: Run, b: Run) -> Iterator[str]:
    """What was set differently: by the numbers in each line, and by Megatron's arguments."""
    for name in _SETTINGS:
        for pair in pairs_of(a.samples.get(name, ()), b.samples.get(name, ())):
            if not pair.is_within(Tolerance(relative=1e-5)):
                yield (f"{name} differs from iteration {pair.a.last} on: {pair.a.value:g} in A, {pair.b.value:g} in B")
                break
    differing = different_arguments(a, b)
    if differing:
        shown = [f"{name} {one} / {other}" for name, (one, other) in list(differing.items())[:10]]
        more = f" and {len(differing) - 10} more" if len(differing) > 10 else ""
        yield f"arguments differ (A / B): {', '.join(shown)}{more}"


def different_arguments(a: Run, b: Run) -> dict[str, tuple[str, str]]:
    """Arguments that both runs recorded and that are not alike, except those of no consequence, such as paths."""
    names = sorted(a.arguments.keys() & b.arguments.keys())
    return {
        name: (a.arguments[name], b.arguments[name])
        for name in names
        if a.arguments[name] != b.arguments[name] and not _INCIDENTAL.search(name)
    }


def _notes(a: Run, b: Run, quantities: Sequence[Quantity]) -> Iterator[str]:
    """What of the loss could not be compared, and where both have none."""
    known_a, known_b = a.iterations(), b.iterations()
    begin, end = max(min(known_a), min(known_b)), min(max(known_a), max(known_b))
    if (min(known_a), max(known_a)) != (min(known_b), max(known_b)):
        yield (
            f"A has losses of iterations {min(known_a)}-{max(known_a)}, B of {min(known_b)}-{max(known_b)}: "
            f"compared are {begin}-{end}"
        )
    for name, missing in (("A", known_b - known_a - a.left_out), ("B", known_a - known_b - b.left_out)):
        missing = {iteration for iteration in missing if begin <= iteration <= end}
        if missing:
            yield f"{name} has no loss of {iterations_text(missing)}"
    loss = quantities[0]
    compared = {iteration for pair in loss.pairs for iteration in pair.a.iterations}
    uneven = {i for i in (known_a & known_b) - compared if begin <= i <= end}
    if uneven:
        yield f"not compared, because the runs logged means over different iterations: {iterations_text(uneven)}"
    neither = {pair.a.last for pair in loss.pairs if pair.agree_beyond_numbers}
    if neither:
        yield f"the loss is not a finite number in either run: {iterations_text(neither)}"
