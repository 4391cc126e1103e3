"""Which iterations the means in Megatron's log are over.

Upstream prints losses and times as means since the line before. Three things make the iterations of a line less than
obvious, and two equal runs seem to differ to a reader who does not know them:

- With ``--log-interval N`` a line is over N iterations. A line that is lost does not lengthen the next one.
- From 0.16 on, the first iteration of a process is logged whatever the interval, **and the sums are not reset after
  it** (``should_reset`` in upstream's ``training_log``). The next line has the first iteration in it again: with an
  interval of 1, the second loss of every fresh or resumed process is the mean of two. The line before it tells the
  first one, so the sum can be taken apart. Gradient norm and learning rate are no means.
- An iteration that was skipped is in no mean of losses, and a mean that is not a number is left out of the line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from ascend_patch.runs.megatron_log import History, Iteration, Process
from ascend_patch.runs.run import GRAD_NORM, LOSS, Sample, without_overlap

WARM_UP = 2  # first iterations of a process, slower than the rest
_ROUNDING = {GRAD_NORM: 0.0005, "params norm": 0.0005}  # printed with three decimals


@dataclass(frozen=True)
class Span:
    """The iterations that the means of a line are over.

    Attributes:
        first: the first of them, without that of ``again``; None if the log does not tell.
        again: the process's first line, where it is in the means of this line again.
    """

    line: Iteration
    first: int | None
    again: Iteration | None = None

    @property
    def count(self) -> int:
        """Iterations from ``first`` on that were not skipped."""
        if self.first is None:
            return 0
        skipped = self.line.skipped - (self.again.skipped if self.again else 0)
        return self.line.iteration - self.first + 1 - skipped


@dataclass
class LoggedSamples:
    """What a log tells, sample by sample.

    Attributes:
        quantities: samples by name.
        seconds: of an iteration, without those in which a process warms up.
        taken_apart: last iterations of lines whose means had a process's first iteration in them again.
        unknown: last iterations of lines whose means are left out, because the log does not tell what they are over.
    """

    quantities: dict[str, list[Sample]] = field(default_factory=dict)
    seconds: list[Sample] = field(default_factory=list)
    taken_apart: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)


def samples_of(history: History) -> LoggedSamples:
    """Every training quantity of a log; where two processes logged the same iteration, the later one counts."""
    found = LoggedSamples()
    interval = log_interval(history)
    has_loss = any(line.loss is not None for line in history.iterations.values())
    for process in history.processes:
        warm = 0
        for span in spans(process, interval):
            line = span.line
            warm = warm or (_first_iteration(process, interval) or span.first or line.iteration) + WARM_UP
            if history.iterations[line.iteration] is not line:
                continue
            for name, sample in _samples(span, has_loss):
                found.quantities.setdefault(name, []).append(sample)
            if span.first is None:
                found.unknown.add(line.iteration)
                continue
            if span.first >= warm and line.seconds:
                found.seconds.append(Sample(span.first, line.iteration, line.seconds))
            if span.again:
                found.taken_apart.add(line.iteration)
    found.quantities = {name: without_overlap(samples) for name, samples in found.quantities.items()}
    return found


def log_interval(history: History) -> int:
    """``--log-interval``: from the arguments in the log, or what divides the iterations of its lines; 0 if unknown.

    Only the first line of a process, from 0.16 on, can be at an iteration that the interval does not divide.
    """
    told = history.arguments.get("log_interval", "")
    if told.isdecimal():
        return int(told)
    regular = [
        line.iteration
        for process in history.processes
        for position, line in enumerate(process.lines)
        if position or not line.keeps_first
    ]
    return math.gcd(*regular) if len(regular) > 1 else 0


def spans(process: Process, interval: int) -> Iterator[Span]:
    """The span of each line of a process."""
    first = _first_iteration(process, interval)
    before = process.loaded or 0
    for position, line in enumerate(process.lines):
        yield _span(process, position, interval, first, before)
        before = line.iteration


def _span(process: Process, position: int, interval: int, first: int | None, before: int) -> Span:
    """The span of one line.

    Args:
        first: the iteration that the process began with, if known.
        before: the iteration up to which the sums were reset at the latest.
    """
    line, opening = process.lines[position], process.lines[0]
    if line.iteration == 1 or (line.keeps_first and line.iteration == first):
        return Span(line, line.iteration)
    if line.keeps_first and first is not None:
        is_second = line.iteration <= (first // interval + 1) * interval if interval else position == 1
        if is_second:
            again = opening if opening.iteration == first else None
            return Span(line, first + 1 if again else first, again)
    elif line.keeps_first:  # the opening line may be the process's first one, its second, or any other
        if line is opening or line.iteration - opening.iteration <= interval:
            return Span(line, None)
    elif line is opening and process.loaded is None and interval > 1 and line.iteration != interval:
        return Span(line, None)  # the process may have begun within the interval
    return Span(line, max(line.iteration - interval, before) + 1 if interval else None)


def _first_iteration(process: Process, interval: int) -> int | None:
    """The iteration that a process began with, None if the log does not tell."""
    opening = process.lines[0].iteration if process.lines else 0
    if process.loaded is not None and process.loaded < opening:
        return process.loaded + 1
    off_interval = bool(interval and opening % interval)
    return opening if opening == 1 or off_interval else None


def _samples(span: Span, has_loss: bool) -> Iterator[tuple[str, Sample]]:
    """The samples in a line, by name; ``has_loss`` says whether other lines of the run have a loss."""
    line = span.line
    for name, value in line.quantities.items():
        if name.endswith("loss"):
            sample = _mean(span, name, value)
            if sample:
                yield name, sample
        else:
            yield name, Sample(line.iteration, line.iteration, value, rounding=_ROUNDING.get(name, 0.0))
    if has_loss and line.loss is None and line.is_complete and span.first is not None and span.count > 0:
        yield LOSS, Sample(span.first, line.iteration, math.nan, span.count)


def _mean(span: Span, name: str, value: float) -> Sample | None:
    """The mean over the span, or None if nothing of it is known."""
    if span.first is None or span.count <= 0:
        return None
    rounding = rounding_of(value)
    if span.again is None or span.again.skipped:
        return Sample(span.first, span.line.iteration, value, span.count, rounding=rounding)
    if name not in span.again.quantities:
        return None
    again = span.again.quantities[name]
    total, total_rounding = value * (span.count + 1) - again, rounding * (span.count + 1) + rounding_of(again)
    return Sample(
        span.first, span.line.iteration, total / span.count, span.count, parts=2, rounding=total_rounding / span.count
    )


def rounding_of(value: float) -> float:
    """How far a loss may be from ``value``, which upstream summed in float32 and printed with seven digits."""
    if not value or not math.isfinite(value):
        return 0.0
    last_digit = 10.0 ** (math.floor(math.log10(abs(value))) - 6)
    return last_digit / 2 + abs(value) * 2.0**-23
