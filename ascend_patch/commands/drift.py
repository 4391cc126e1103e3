"""`ascend-patch drift`: which patches hold on which release, from the sources alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_patch.commands import megatron
from ascend_patch.commands.megatron import Megatron
from ascend_patch.commands.output import markdown_table, print_json, print_table
from ascend_patch.engine.contract import Contract
from ascend_patch.engine.drift import Finding, examine
from ascend_patch.engine.patch import Patch
from ascend_patch.engine.report import write_text

HELP = "which patches hold on the installed Megatron-LM, or on others"
LEGEND = """\
`ok`: as recorded for a release in the patch's range. `body`: the body of the target changed; a wrap still
applies, with a notice. `consumer`: other upstream code that the patch relies on changed. `DRIFT`: a run on
this release stops, unless the patch is disabled. `-`: this package of Megatron-LM does not contain that part
(`megatron.training` comes with wheels from 0.17 on). In brackets: the patch is not meant for this release and
is skipped there; what it would find is shown all the same (`signature`: the target is called differently,
`missing`: it does not exist).
"""


@dataclass(frozen=True)
class Cell:
    """One patch row on one release.

    Attributes:
        target: the patch's target.
        in_range: whether the patch is meant for this release.
        shipped: whether the release has the package that holds the target.
        findings: what is not as recorded.
    """

    target: str
    in_range: bool
    shipped: bool
    findings: tuple[Finding, ...]

    @property
    def stops_a_run(self) -> bool:
        """Whether a run on this release would be refused because of this patch."""
        return self.in_range and self.shipped and any(finding.is_error for finding in self.findings)

    def __str__(self) -> str:
        if not self.shipped:
            return "-"
        if self.stops_a_run:
            return "DRIFT"
        word = "ok"
        if self.findings:  # the target's own comes first
            word = self.findings[0].change if self.findings[0].symbol == self.target else "consumer"
        return word if self.in_range else f"({word})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "in_range": self.in_range,
            "shipped": self.shipped,
            "stops_a_run": self.stops_a_run,
            "findings": [vars(finding) | {"text": str(finding)} for finding in self.findings],
        }


def cell(patch: Patch, contract: Contract, where: Megatron) -> Cell:
    """Examine one patch on one Megatron."""
    shipped = where.tree.covers(patch.module)
    findings = examine(patch, contract, where.tree, where.version) if shipped else []
    return Cell(patch.target, patch.supports(where.version), shipped, tuple(findings))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "--megatron",
        nargs="+",
        action="extend",
        metavar="PLACE",
        help="a folder, a wheel, a version (it is downloaded) or `installed`, the default",
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write the table to FILE, as a document")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 if a run on one of the releases would be refused."""
    from ascend_patch.features import PATCHES

    places = [megatron.resolve(value) for value in arguments.megatron or ()] or [megatron.installed()]
    contract = Contract.load()
    cells = {patch: [cell(patch, contract, place) for place in places] for patch in PATCHES}
    header = ["patch", "target", *(place.version for place in places)]
    rows = [[patch.id, patch.target, *map(str, row)] for patch, row in cells.items()]
    if arguments.markdown:
        write_text(arguments.markdown, _document(header, rows, contract))
    if arguments.json:
        print_json(_data(places, cells))
    else:
        print_table(header, rows)
        for line in _details(places, cells):
            print(line)
    return int(any(one.stops_a_run for row in cells.values() for one in row))


def _data(places: Sequence[Megatron], cells: dict[Patch, list[Cell]]) -> dict[str, Any]:
    return {
        "releases": [{"version": place.version, "origin": place.origin} for place in places],
        "patches": [
            {
                "id": patch.id,
                "target": patch.target,
                "mode": patch.mode,
                "upstream": patch.upstream,
                "releases": [one.as_dict() for one in row],
            }
            for patch, row in cells.items()
        ],
    }


def _details(places: Sequence[Megatron], cells: dict[Patch, list[Cell]]) -> Iterable[str]:
    """One line for each finding on a release that the patch is meant for, and the next step."""
    stopped = []
    for patch, row in cells.items():
        for place, one in zip(places, row, strict=True):
            for finding in one.findings if one.in_range else ():
                yield f"{place.version}: {patch.id}: {finding}"
            if one.stops_a_run:
                stopped.append(patch.id)
    if stopped:
        ids = ",".join(dict.fromkeys(stopped))
        yield (
            f"A run would stop. Use a supported release, set ASCEND_PATCH_DISABLE={ids} to run without them, "
            "or review the change and record it with `ascend-patch contract --megatron … --write`."
        )


def _document(header: list[str], rows: list[list[str]], contract: Contract) -> str:
    return (
        "# Which patches hold on which release of Megatron-LM\n\n"
        "Generated by `ascend-patch drift --megatron … --markdown docs/drift.md`; do not edit. The sources "
        "of the released wheels are compared with the fingerprints recorded for "
        f"{', '.join(contract.versions)}.\n\n"
        f"{LEGEND}\n{markdown_table(header, ([f'`{one}`' for one in row[:2]] + row[2:] for row in rows))}"
    )
