"""Reads the numbers out of Megatron's training log, as 0.17 to 0.19 print it.

A pure parser of text: it starts nothing, follows no file and knows no run. Two traits of the numbers come
from upstream: with ``--log-interval N`` a line holds means over N iterations, and the second line of a
process holds the mean of its first two losses, because upstream does not reset its sum after the first one.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_ITERATION = re.compile(r"\biteration\s+(\d+)/\s*(\d+) \|(.*)")
_VALIDATION = re.compile(r"\bvalidation loss at iteration (\d+)(?: on (validation|test) set)? \|(.*)")
_QUANTITY = re.compile(rf"\s*([^|:]+?):\s+({_NUMBER})\s*(?:\||$)")
_MEMORY = re.compile(rf"\[Rank (\d+)\].*memory \(MB\).*\bmax allocated: ({_NUMBER})")


@dataclass(frozen=True)
class Iteration:
    """One line of training: ``quantities`` by upstream's names ("lm loss", "grad norm", "learning rate")."""

    iteration: int
    last: int
    quantities: dict[str, float]

    @property
    def loss(self) -> float | None:
        """The language-model loss; None on a line where every iteration was skipped."""
        return self.quantities.get("lm loss")

    @property
    def seconds(self) -> float:
        """Wall-clock time of one iteration."""
        return self.quantities.get("elapsed time per iteration (ms)", 0.0) / 1000


@dataclass(frozen=True)
class Validation:
    """One evaluation. ``split`` is empty during training; after it, "validation" or "test" documents."""

    iteration: int
    split: str
    loss: float


@dataclass(frozen=True)
class Memory:
    """The most memory a rank had allocated so far, in bytes (on the cpu device: its resident set)."""

    rank: int
    peak_bytes: int


def parse_line(line: str) -> Iteration | Validation | Memory | None:
    """What ``line`` reports, or None if it reports none of these; torchrun's prefixes do not matter."""
    if match := _ITERATION.search(line):
        return Iteration(int(match[1]), int(match[2]), _quantities(match[3]))
    if match := _VALIDATION.search(line):
        quantities = _quantities(match[3])
        if "lm loss value" in quantities:
            return Validation(int(match[1]), match[2] or "", quantities["lm loss value"])
    if match := _MEMORY.search(line):
        return Memory(int(match[1]), int(float(match[2]) * 2**20))
    return None


def _quantities(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in _QUANTITY.findall(text)}


@dataclass
class History:
    """All records of a run. Where a resumed run repeats an iteration, the later line counts."""

    iterations: dict[int, Iteration] = field(default_factory=dict)
    validations: dict[int, Validation] = field(default_factory=dict)
    test: Validation | None = None
    peak_bytes: int = 0

    def add(self, line: str) -> Iteration | Validation | Memory | None:
        """Take in one line of the log; returns what it was, as :func:`parse_line` does."""
        record = parse_line(line)
        match record:
            case Iteration():
                self.iterations[record.iteration] = record
            case Validation(split="test"):
                self.test = record
            case Validation(split="validation"):
                self.validations.setdefault(record.iteration, record)  # further samples of the same documents
            case Validation():
                self.validations[record.iteration] = record
            case Memory():
                self.peak_bytes = max(self.peak_bytes, record.peak_bytes)
        return record

    @classmethod
    def of(cls, lines: Iterable[str]) -> "History":
        """The history in the lines of a log."""
        history = cls()
        for line in lines:
            history.add(line)
        return history

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """The iterations at which upstream reported the quantity ``name``, and its values."""
        found = [(i, r.quantities[name]) for i, r in sorted(self.iterations.items()) if name in r.quantities]
        return [i for i, _ in found], [value for _, value in found]

    def validation_series(self) -> tuple[list[int], list[float]]:
        """The iterations of the evaluations, and the validation loss at each."""
        found = sorted(self.validations.items())
        return [i for i, _ in found], [record.loss for _, record in found]
