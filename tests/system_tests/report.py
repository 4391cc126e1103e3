"""``python -m tests.system_tests.report FOLDER RECORDS…``: one page of what the system tests compared, and one picture.

``make system-test`` leaves a file of records for each of its halves (``pytest --records FILE``); here they become
``report.md`` and ``losses.png`` in the folder. A test that failed is on the page too, and one that was skipped says
why.
"""

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

COLUMNS = 4
"""Of the picture."""
OUTCOMES = ("passed", "failed", "skipped")


@dataclass(frozen=True)
class Record:
    """One test.

    Attributes:
        test: its id.
        outcome: passed, failed or skipped.
        seconds: that it took.
        reason: why it was skipped.
        compared: what the fixture ``compared`` was told.
    """

    test: str
    outcome: str
    seconds: float
    reason: str = ""
    compared: list[dict] = field(default_factory=list)

    @classmethod
    def of(cls, report: pytest.TestReport) -> "Record":
        """From what pytest reports of a test."""
        reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        compared = [value for name, value in report.user_properties if name == "compared"]
        return cls(report.nodeid, report.outcome, report.duration, reason, compared)


class Compared:
    """Checks what a test compared, and has it on the report's page.

    Args:
        record: pytest's ``record_property``.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def losses(
        self, what: str, a: tuple[str, Sequence[float]], b: tuple[str, Sequence[float]], first: float, every: float
    ) -> None:
        """Two runs, each with its name and the losses of its iterations.

        Args:
            first, every: relative differences that are allowed in the first iteration, and in any.
        """
        differences = [abs(one / other - 1) for one, other in zip(a[1], b[1], strict=True)]
        figures = {
            "first loss": (differences[0], first),
            "any loss": (max(differences, key=lambda each: (math.isnan(each), each)), every),
        }
        self._check(what, figures, {name: list(curve) for name, curve in (a, b)})

    def differing(self, what: str, of: str, names: Sequence[object]) -> None:
        """``names``, of which there must be none."""
        self._check(f"{what}{': ' * bool(names)}{', '.join(map(str, names[:3]))}", {of: (len(names), 0)}, {})

    def _check(self, what: str, figures: dict[str, tuple[float, float]], curves: dict[str, list[float]]) -> None:
        shown = {name: list(pair) for name, pair in figures.items()}
        self._record("compared", {"what": what, "figures": shown, "curves": curves})
        for name, (found, allowed) in figures.items():
            assert found <= allowed, f"{what}, {name}: {found:.3g} instead of at most {allowed:g}"


class Recorder:
    """A plugin of pytest that writes the records to ``file``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._records: list[Record] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The test itself, and of all around it what went wrong."""
        if report.when == "call" or not report.passed:
            self._records.append(Record.of(report))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write what was recorded, and pytest's exit status, which knows of collection and of workers that died too."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        content = {"exit status": int(exitstatus), "records": [asdict(record) for record in self._records]}
        self._file.write_text(json.dumps(content), encoding="utf-8")


def read(files: Sequence[Path]) -> tuple[list[Record], bool]:
    """The records of all halves, and whether pytest was content with each."""
    halves = [json.loads(file.read_text()) for file in files]
    records = [Record(**entry) for half in halves for entry in half["records"]]
    return records, all(half["exit status"] == pytest.ExitCode.OK for half in halves)


def page(records: Sequence[Record]) -> str:
    """The report as Markdown; its picture lies beside it."""
    import torch

    from ascend_patch import __version__

    outcomes = {outcome: sum(record.outcome == outcome for record in records) for outcome in OUTCOMES}
    minutes = sum(record.seconds for record in records) / 60
    lines = [
        "# System tests",
        "",
        f"ascend_patch {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}; "
        f"{minutes:.0f} minutes of tests on {os.cpu_count()} processors. NPU: the real one where there is one, else "
        "simulated.",
        "",
        "| compared | figure | found | at most | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for record in records:
        for entry in record.compared:
            for name, (found, allowed) in entry["figures"].items():
                verdict = "yes" if found <= allowed else "**NO**"
                lines.append(f"| {entry['what']} | {name} | {found:.3g} | {allowed:g} | {verdict} |")
    lines += ["", "![losses of each comparison](losses.png)", "", "| test | outcome | seconds |", "| --- | --- | --- |"]
    for record in records:
        name = record.test.rpartition("/")[2]
        reason = f": {record.reason}" if record.reason else ""
        lines.append(f"| `{name}` | {record.outcome}{reason} | {record.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def draw(records: Sequence[Record], file: Path) -> None:
    """The losses of every comparison that has some, two curves in a panel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = [entry for record in records for entry in record.compared if entry["curves"]]
    rows = max(1, -(-len(entries) // COLUMNS))
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(3.6 * COLUMNS, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(entries) :]:
        axis.axis("off")
    for axis, entry in zip(axes.flat, entries, strict=False):
        (first, a), (second, b) = entry["curves"].items()
        iterations = range(1, len(a) + 1)
        axis.plot(iterations, a, color="tab:blue", linewidth=3, alpha=0.4, label=first)
        axis.plot(iterations, b, color="black", linewidth=0.8, label=second)
        largest = max(abs(two / one - 1) for one, two in zip(a, b, strict=True))
        axis.set_title(f"{entry['what'].replace(', ', chr(10), 1)}\nat most {largest:.1e} apart", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6, frameon=False)
    figure.supxlabel("iteration", fontsize=8)
    figure.supylabel("lm loss", fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 if pytest was not content with a half, or nothing was compared."""
    parser = argparse.ArgumentParser(prog="tests.system_tests.report", description="The page of the system tests.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("records", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    folder, (records, is_content) = options.folder, read(options.records)
    draw(records, folder / "losses.png")
    (folder / "report.md").write_text(page(records), encoding="utf-8")
    print(folder / "report.md")
    return int(not is_content or not any(record.compared for record in records))


if __name__ == "__main__":
    sys.exit(main())
