"""Reads a run from a log or a TensorBoard folder, whichever it is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ascend_patch.runs import tensorboard
from ascend_patch.runs.means import LoggedSamples, rounding_of, samples_of
from ascend_patch.runs.megatron_log import History
from ascend_patch.runs.run import LOSS, Run, RunError, Sample, iterations_text


def read(path: Path) -> Run:
    """The run that left ``path``: a log, an event file, or a folder with event files in or below it.

    Raises:
        RunError: there is nothing of the kind.
    """
    if path.is_dir():
        files = tensorboard.event_files(path)
        if not files:
            raise RunError(f"{path} is a folder without TensorBoard's event files. Name a log, or such a folder.")
        return tensorboard.read(path, files)
    if ".tfevents." in path.name:
        return tensorboard.read(path, [path])
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            history = History.of(lines)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. Name a log or a TensorBoard folder.") from error
    if not history.iterations:
        raise RunError(
            f"{path} has no line of training, such as ` iteration 1/ 100 | … | lm loss: 1.0E+01 | …`. The last rank "
            "prints them: name its log, which with several nodes is that of the last one."
        )
    return of_log(path, history)


def of_log(path: Path, history: History) -> Run:
    """The run that a log tells of."""
    found = samples_of(history)
    evaluations = [(f"{LOSS} validation", history.validations[i]) for i in sorted(history.validations)]
    evaluations += [(f"{LOSS} test", history.test)] if history.test else []
    for name, record in evaluations:
        sample = Sample(record.iteration, record.iteration, record.loss, rounding=rounding_of(record.loss))
        found.quantities.setdefault(name, []).append(sample)
    return Run(
        path,
        found.quantities,
        found.seconds,
        history.arguments,
        sum(bool(process.lines) for process in history.processes),
        frozenset(found.unknown),
        list(_notes(history, found)),
    )


def _notes(history: History, found: LoggedSamples) -> Iterator[str]:
    if found.taken_apart:
        yield (
            f"the log's losses of {iterations_text(found.taken_apart)} are means with the first iteration of the "
            "process in them again, because upstream does not reset its sum after it; it was taken out"
        )
    if found.unknown:
        yield (
            f"the losses of {iterations_text(found.unknown)} are left out: if a process starts there, which this log "
            "does not show, they are means with its first iteration in them"
        )
    if history.repeated:
        yield f"logged more than once, the later line counts: {iterations_text(history.repeated)}"
    skipped = sum(line.skipped for line in history.iterations.values())
    if skipped:
        yield f"skipped because a gradient was not finite: {skipped} of the iterations"
