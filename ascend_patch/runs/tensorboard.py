"""Reads the folder that Megatron wrote for TensorBoard.

Unlike the log, it holds every loss as it was in its iteration: no means, no rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ascend_patch.runs.means import WARM_UP
from ascend_patch.runs.run import LOSS, Run, RunError, Sample, iterations_text, without_overlap

_LOG_NAMES = {
    "learning-rate": "learning rate",
    "batch-size": "global batch size",
    "grad-norm": "grad norm",
    "params-norm": "params norm",
    "num-zeros": "num zeros",
    "loss-scale": "loss scale",
}
_TEXT, _SECONDS = "/text_summary", "iteration-time"


@dataclass
class _Process:
    """One event file: what one start of the training wrote."""

    quantities: dict[str, dict[int, float]] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)


def event_files(folder: Path) -> list[Path]:
    """The event files below ``folder``, oldest first.

    Raises:
        RunError: they are those of several runs.
    """
    files = sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.name)
    folders = sorted({str(path.parent) for path in files})
    if len(folders) > 1:
        raise RunError(f"{folder} holds the event files of several runs. Name one of {', '.join(folders)}.")
    return files


def read(path: Path, files: list[Path]) -> Run:
    """The run that wrote ``files``, oldest first.

    Raises:
        RunError: the tensorboard package is missing, or no file has a loss of training.
    """
    processes = [process for process in map(_read_file, files) if process.quantities]
    if not any(LOSS in process.quantities for process in processes):
        raise RunError(
            f"{path} has event files without a series `{LOSS}`. Name the folder given to --tensorboard-dir: "
            "the last rank writes it."
        )
    samples: dict[str, list[Sample]] = {}
    seconds, arguments, seen, repeated = list[Sample](), dict[str, str](), set[int](), set[int]()
    for process in processes:
        for name, values in process.quantities.items():
            samples.setdefault(name, []).extend(Sample(i, i, value, parts=0) for i, value in sorted(values.items()))
        arguments |= process.arguments
        logged = set(process.quantities.get(LOSS, ()))
        seconds = [sample for sample in seconds if sample.last not in logged] + _seconds(process)
        repeated |= seen & logged
        seen |= logged
    notes = []
    if repeated:
        notes.append(f"recorded more than once, the later record counts: {iterations_text(repeated)}")
    return Run(
        path,
        {name: without_overlap(found) for name, found in samples.items()},
        seconds,
        arguments,
        len(processes),
        notes=notes,
    )


def _read_file(path: Path) -> _Process:
    process = _Process()
    for step, time, tag, value in _events(path):
        if isinstance(value, str):
            process.arguments[tag.removesuffix(_TEXT)] = value
        elif " vs " in tag:
            continue  # the same number again, by consumed samples
        else:
            series = process.quantities.setdefault(_LOG_NAMES.get(tag, tag), {})
            # After training, upstream records its last evaluations of validation and test documents under one name.
            if " validation" not in tag or step not in series:
                series[step] = value
            if tag == LOSS:
                process.times[step] = time
    return process


def _events(path: Path) -> Iterator[tuple[int, float, str, float | str]]:
    """Step, wall-clock time, tag and value; what a killed process left unfinished at the end is passed over."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise RunError(
            f"{path} can only be read with the tensorboard package ({error}). Install it (pip install tensorboard), "
            "or name the log of the run instead."
        ) from error
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars":
                yield event.step, event.wall_time, value.tag, float(make_ndarray(value.tensor))
            elif value.tag.endswith(_TEXT):
                yield event.step, event.wall_time, value.tag, b"".join(value.tensor.string_val).decode()


def _seconds(process: _Process) -> list[Sample]:
    """The time of an iteration: as recorded, or else the time between two records of the loss."""
    warm = min(process.times, default=0) + WARM_UP
    recorded = sorted(process.quantities.get(_SECONDS, {}).items())[1:]  # the first one has the first iteration in it
    if recorded:
        found = [Sample(i, i, seconds, parts=0) for i, seconds in recorded]
    else:
        times = sorted(process.times.items())
        found = [Sample(i + 1, j, (b - a) / (j - i), parts=0) for (i, a), (j, b) in pairwise(times)]
    return [sample for sample in found if sample.first >= warm]
