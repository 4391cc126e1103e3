"""What is known of a run, wherever it was read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from ascend_patch.engine.errors import AscendPatchError

LOSS, GRAD_NORM, LEARNING_RATE, BATCH_SIZE = "lm loss", "grad norm", "learning rate", "global batch size"


class RunError(AscendPatchError):
    """What a run left behind cannot be read or compared; the message says why and what to do."""


@dataclass(frozen=True)
class Sample:
    """A logged number: the mean over the iterations ``first`` to ``last``, of which ``count`` have a value.

    Attributes:
        parts: printed numbers that ``value`` was computed from; 0 if it was recorded in binary.
        rounding: how far ``value`` may be from what was rounded to print it.
    """

    first: int
    last: int
    value: float
    count: int = 1
    parts: int = 1
    rounding: float = 0.0

    @property
    def iterations(self) -> range:
        """The iterations covered."""
        return range(self.first, self.last + 1)

    @classmethod
    def mean(cls, samples: Sequence[Sample]) -> Sample:
        """One sample for several adjoining ones."""
        if len(samples) == 1:
            return samples[0]
        count = sum(sample.count for sample in samples)
        return cls(
            samples[0].first,
            samples[-1].last,
            sum(sample.value * sample.count for sample in samples) / count,
            count,
            sum(sample.parts for sample in samples),
            sum(sample.rounding * sample.count for sample in samples) / count,
        )


@dataclass(frozen=True)
class Run:
    """One training, from its first start to the end of what was recorded.

    Attributes:
        path: where it was read.
        samples: by quantity, in the order of the iterations, without overlap. Names are those of Megatron's log;
            evaluations are "lm loss validation" and "lm loss test".
        seconds: samples of the time an iteration took, from iterations in which the processes had warmed up.
        arguments: Megatron's, as text; empty if they were not recorded.
        processes: how many times the training was started.
        left_out: iterations whose losses were logged, but not so that they could be compared.
        notes: sentences about what is special, for people.
    """

    path: Path
    samples: Mapping[str, Sequence[Sample]]
    seconds: Sequence[Sample] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    left_out: frozenset[int] = frozenset()
    notes: Sequence[str] = ()

    def iterations(self, quantity: str = LOSS) -> set[int]:
        """The iterations that ``quantity`` is known of."""
        return {iteration for sample in self.samples.get(quantity, ()) for iteration in sample.iterations}

    def number(self, argument: str) -> int | None:
        """One of Megatron's arguments, if it was recorded and is a whole number."""
        text = self.arguments.get(argument, "")
        return int(text) if text.isdecimal() else None


def without_overlap(samples: Iterable[Sample]) -> list[Sample]:
    """``samples`` ordered by iteration; where two overlap, the one that comes later in ``samples`` counts."""
    kept, taken = [], set[int]()
    for sample in reversed(list(samples)):
        if taken.isdisjoint(sample.iterations):
            taken.update(sample.iterations)
            kept.append(sample)
    return sorted(kept, key=lambda sample: sample.first)


def ranges(numbers: Iterable[int], limit: int = 8) -> str:
    """Numbers for people: "4, 7-9"; after ``limit`` of such pieces only how many there are more."""
    pieces = []
    for _, group in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        pieces.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    more = f" and {len(pieces) - limit} more" if len(pieces) > limit else ""
    return ", ".join(pieces[:limit]) + more


def iterations_text(numbers: Iterable[int]) -> str:
    """Numbers of iterations for people: "iteration 4", "iterations 4, 7-9"."""
    numbers = list(numbers)
    return f"iteration{'s' if len(numbers) > 1 else ''} {ranges(numbers)}"
