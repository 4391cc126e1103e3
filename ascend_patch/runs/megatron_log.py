"""Reads Megatron's training log, as 0.12 to 0.19 print it.

A pure parser of text: it starts nothing, follows no file and knows no run. Means are kept as printed; which iterations
they are over is told by :mod:`ascend_patch.runs.means`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_TIME = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\] "
# Ranks share a stream, so a record may stand behind another rank's text, and be followed by it.
_ITERATION = re.compile(rf"((?:{_TIME})?\biteration\s+(\d+)/\s*(\d+) \|(.*))")
_VALIDATION = re.compile(r"\bvalidation loss at iteration (\d+)(?: on (validation|test) set)? \|(.*)")
# The bar closes a number: without it, the line was cut off and digits may be missing.
_QUANTITY = re.compile(rf"\s*([^|:]+?):\s+({_NUMBER})\s*\|")
_MEMORY = re.compile(rf"\[Rank (\d+)\].*memory \(MB\).*\bmax allocated: ({_NUMBER})")
_ARGUMENT = re.compile(r"(?:^|[\]:] ) *(\w+) \.{2,} (.*)")
_LOADED = re.compile(r"successfully loaded checkpoint from .* at iteration (\d+)")
_ARGUMENTS, _TRAINS = "- arguments ---", "[before the start of training step]"


@dataclass(frozen=True)
class Iteration:
    """One line of training.

    Attributes:
        quantities: by upstream's names ("lm loss", "grad norm", "learning rate").
        line: the text from the time on, to recognise a line that was printed twice.
        keeps_first: upstream is 0.16 or later, where the first line of a process leaves the sums and timers behind
            the means running. The time tells: since the same release it has microseconds.
    """

    iteration: int
    last: int
    quantities: dict[str, float]
    line: str = ""
    keeps_first: bool = False

    @property
    def loss(self) -> float | None:
        """The language-model loss; None on a line where every iteration was skipped."""
        return self.quantities.get("lm loss")

    @property
    def seconds(self) -> float:
        """Wall-clock time of one iteration."""
        return self.quantities.get("elapsed time per iteration (ms)", 0.0) / 1000

    @property
    def skipped(self) -> int:
        """Iterations among those reported that did not train, because a gradient was not finite."""
        return int(self.quantities.get("number of skipped iterations", 0))

    @property
    def is_complete(self) -> bool:
        """Whether the line was printed to its end."""
        return "number of nan iterations" in self.quantities


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


@dataclass(frozen=True)
class Start:
    """A process starts: it prints its arguments, has loaded its checkpoint (of iteration ``loaded``), or trains."""

    loaded: int | None = None
    prints_arguments: bool = False


@dataclass(frozen=True)
class Argument:
    """One of Megatron's arguments, as text."""

    name: str
    value: str


Record = Iteration | Validation | Memory | Start | Argument


def parse_line(line: str) -> Record | None:
    """What ``line`` reports, or None if it reports none of these; torchrun's prefixes do not matter."""
    if match := _ITERATION.search(line):
        text, microseconds, iteration, last, rest = match.groups()
        return Iteration(int(iteration), int(last), _quantities(rest), text.rstrip(), microseconds is not None)
    if match := _VALIDATION.search(line):
        quantities = _quantities(match[3])
        if "lm loss value" in quantities:
            return Validation(int(match[1]), match[2] or "", quantities["lm loss value"])
    if match := _MEMORY.search(line):
        return Memory(int(match[1]), int(float(match[2]) * 2**20))
    if match := _LOADED.search(line):
        return Start(int(match[1]))
    if _ARGUMENTS in line or _TRAINS in line:
        return Start(prints_arguments=_ARGUMENTS in line)
    if match := _ARGUMENT.search(line):
        return Argument(match[1], match[2].strip())
    return None


def _quantities(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in _QUANTITY.findall(text)}


@dataclass
class Process:
    """One start of the training and what it logged.

    Attributes:
        loaded: the iteration of the checkpoint that it resumed from, if the log tells.
        lines: in the order of their iterations.
    """

    loaded: int | None = None
    lines: list[Iteration] = field(default_factory=list)


@dataclass
class History:
    """All records of a run. Where a resumed run repeats an iteration, the later line counts.

    Attributes:
        processes: those that trained, and the latest one even if it has not trained yet.
        repeated: iterations that more than one process logged.
        arguments: Megatron's, of the latest process that printed them.
    """

    iterations: dict[int, Iteration] = field(default_factory=dict)
    validations: dict[int, Validation] = field(default_factory=dict)
    test: Validation | None = None
    peak_bytes: int = 0
    processes: list[Process] = field(default_factory=list)
    repeated: set[int] = field(default_factory=set)
    arguments: dict[str, str] = field(default_factory=dict)

    def add(self, line: str) -> Record | None:
        """Take in one line of the log; returns what it was, as :func:`parse_line` does."""
        record = parse_line(line)
        match record:
            case Iteration():
                self._add_iteration(record)
            case Validation(split="test"):
                self.test = record
            case Validation(split="validation"):
                self.validations.setdefault(record.iteration, record)  # further samples of the same documents
            case Validation():
                self.validations[record.iteration] = record
            case Memory():
                self.peak_bytes = max(self.peak_bytes, record.peak_bytes)
            case Start():
                self._add_start(record)
            case Argument():
                self.arguments[record.name] = record.value
        return record

    def _add_iteration(self, record: Iteration) -> None:
        known = self.iterations.get(record.iteration)
        if known and known.line == record.line:
            return  # one line, printed twice: two copies of a stream in one file
        if known:
            self.repeated.add(record.iteration)
        lines = self.processes[-1].lines if self.processes else []
        if not self.processes or (lines and record.iteration <= lines[-1].iteration):
            self.processes.append(Process())
        self.processes[-1].lines.append(record)
        self.iterations[record.iteration] = record

    def _add_start(self, record: Start) -> None:
        idle = self.processes[-1] if self.processes and not self.processes[-1].lines else None
        if idle and record.prints_arguments:
            self.processes.remove(idle)  # it ended before it had trained an iteration
        if not idle or record.prints_arguments:
            self.processes.append(Process())
        if record.loaded is not None:
            self.processes[-1].loaded = record.loaded

    @classmethod
    def of(cls, lines: Iterable[str]) -> History:
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
