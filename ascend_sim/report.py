"""The report of a run on the simulated device: gathered from its processes, summed up, compared with another's."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1

FIGURES: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "launches": lambda step: _total(step["launches"], "count"),
    "bytes read": lambda step: _total(step["launches"], "bytes_read"),
    "bytes written": lambda step: _total(step["launches"], "bytes_written"),
    "host syncs": lambda step: _total(step["syncs"], "count"),
    "uploads": lambda step: _total(step["uploads"], "count"),
    "collectives": lambda step: _total(step["collectives"], "count"),
    "collective bytes": lambda step: _total(step["collectives"], "bytes"),
    "peak memory": lambda step: step["peak_memory_bytes"],
}
"""The figures of one step of one rank, by the names under which reports show them."""


class ReportError(ValueError):
    """A file is not a report; the message names it."""


def gather(directory: Path, target: Path) -> int:
    """Put what every process of a run left in ``directory`` into the file ``target``, ranks in order.

    Returns:
        The number of processes. ``target`` is written even for none, and is complete or absent.
    """
    ranks = sorted((json.loads(path.read_text()) for path in directory.glob("rank*.json")), key=lambda r: r["rank"])
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    with os.fdopen(handle, "w") as file:
        json.dump({"schema": SCHEMA, "ranks": ranks}, file)
    Path(temporary).replace(target)
    return len(ranks)


def read(path: Path) -> dict[str, Any]:
    """A report.

    Raises:
        ReportError: the file is missing, is not JSON or is not a report of this version.
    """
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read as a report: {error}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ReportError(f"{path} is not a report of `ascend-sim run --report` (schema {SCHEMA}). Run it again.")
    return report


def last_step(report: Mapping[str, Any], rank: int = 0) -> Mapping[str, Any]:
    """The last step of a rank: the first ones also set up what later ones find.

    Raises:
        ReportError: the rank is not in the report, or counted nothing.
    """
    steps = [step for process in report["ranks"] if process["rank"] == rank for step in process["steps"]]
    inside = [step for step in steps if step["kind"] == "step"] or steps
    if not inside:
        known = sorted({process["rank"] for process in report["ranks"]})
        raise ReportError(f"The report has nothing of rank {rank}; it has ranks {known}.")
    return inside[-1]


def summary(reports: Mapping[str, Mapping[str, Any]], rank: int = 0) -> list[list[str]]:
    """Rows of a table: one a figure, one column a report, the last the ratio of the last report to the first."""
    steps = {name: last_step(report, rank) for name, report in reports.items()}
    return [
        [figure, *_cells([read_figure(step) for step in steps.values()], _unit(figure))]
        for figure, read_figure in FIGURES.items()
    ]


def by_name(reports: Mapping[str, Mapping[str, Any]], kind: str, rank: int = 0) -> list[list[str]]:
    """Rows of a table: how often each operator, sync or collective ran in the last step, most frequent first.

    Args:
        kind: ``"launches"``, ``"syncs"``, ``"uploads"`` or ``"collectives"``.
    """
    counts = [_by_name(last_step(report, rank)[kind]) for report in reports.values()]
    names = sorted(set().union(*counts), key=lambda name: (-max(count[name] for count in counts), name))
    return [[name, *_cells([count[name] for count in counts], str)] for name in names]


def _by_name(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row["name"]] += row["count"]
    return counts


def _total(rows: Iterable[Mapping[str, Any]], column: str) -> int:
    return sum(row[column] for row in rows)


def _cells(values: Sequence[int], unit: Callable[[int], str]) -> list[str]:
    cells = [unit(value) for value in values]
    if len(values) > 1:
        cells.append(f"{values[-1] / values[0]:.2f}" if values[0] else "-")
    return cells


def _unit(figure: str) -> Callable[[int], str]:
    return (lambda value: f"{value / 2**20:,.2f} MiB") if "bytes" in figure or "memory" in figure else "{:,}".format
