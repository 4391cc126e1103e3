"""`ascend-patch operators`: do the npu operators that ascend_patch calls fit the releases of torch_npu?

Read from the sources and from recorded schemas, or from wheels; neither torch nor torch_npu is imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ascend_patch.commands import operators_table, torch_npu
from ascend_patch.commands.operators_table import Use
from ascend_patch.commands.output import print_json, print_table
from ascend_patch.compat.torch_npu import REFERENCE, cann_of
from ascend_patch.engine.errors import ContractError
from ascend_patch.engine.operator_records import OperatorRelease, read, recorded, records_directory
from ascend_patch.engine.report import write_text

HELP = "which npu operators fit which release of torch_npu"
PACKAGE = Path(__file__).resolve().parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "--wheel",
        nargs="+",
        action="extend",
        default=[],
        metavar="PLACE",
        help="the releases to look at: wheel files or versions (downloaded); default: all that are recorded",
    )
    parser.add_argument("--directory", type=Path, help="where the records are (default: patches/torch_npu/)")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write the table to FILE, as a document")
    parser.add_argument("--json", action="store_true", help="print JSON")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--write", action="store_true", help="record the releases of --wheel (for developers)")
    task.add_argument("--check", action="store_true", help="exit with 1 if a record is stale; nothing is written")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 if a call cannot be read, or does not fit the release that it is written against."""
    directory = arguments.directory or records_directory()
    used = operators_table.uses(PACKAGE)
    named = [torch_npu.resolve(value).only(use.operator for use in used) for value in arguments.wheel]
    if arguments.write:
        if not named:
            raise ContractError("--write needs --wheel: name the wheels, or the versions to download.")
        for release in named:
            write_text(directory / f"{release.version}.toml", release.to_toml())
    elif arguments.check:
        stale = stale_files(used, named, directory)
        for line in stale:
            print(line)
        if stale:
            print("Generate them anew with `ascend-patch operators --wheel RELEASE… --write`, then review.")
        return int(bool(stale))
    releases = named if named and not arguments.write else [read(version, directory) for version in recorded(directory)]
    return _show(arguments, used, releases, read(REFERENCE, directory))


def stale_files(used: Sequence[Use], named: Sequence[OperatorRelease], directory: Path) -> list[str]:
    """One line for each record that is not what would be generated.

    Records of releases that `named` does not include are checked for the operators that they list only.
    """
    wanted = {use.operator for use in used}
    texts = {release.version: release.to_toml() for release in named}
    stale = []
    for version, path in recorded(directory).items():
        listed = read(version, directory).operators
        if listed != wanted:
            names = ", ".join(sorted(listed ^ wanted))
            stale.append(f"{path.name} is stale: it and the sources do not name the same operators ({names}).")
        elif texts.get(version, path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8"):
            stale.append(f"{path.name} is stale: the wheel has other schemas.")
    missing = sorted(texts.keys() - recorded(directory).keys())
    return stale + [f"{version}.toml does not exist." for version in missing]


def _show(
    arguments: argparse.Namespace, used: Sequence[Use], releases: Sequence[OperatorRelease], reference: OperatorRelease
) -> int:
    if arguments.markdown:
        write_text(arguments.markdown, operators_table.document(used, releases, reference))
    if arguments.json:
        print_json(_data(used, releases, reference))
    else:
        print_table(*operators_table.table(used, releases, reference))
        for text, versions in operators_table.details(used, releases, reference).items():
            print(f"{text} ({', '.join(versions)})")
    return int(any(use.findings(reference.schemas, reference.schemas) for use in used))


def _data(used: Sequence[Use], releases: Sequence[OperatorRelease], reference: OperatorRelease) -> dict[str, Any]:
    return {
        "reference": reference.version,
        "releases": [{"version": one.version, "torch": one.torch, "cann": cann_of(one.version)} for one in releases],
        "operators": [
            {
                "name": use.name,
                "calls": [{"file": file, "line": call.line, "call": str(call)} for file, call in use.places],
                "releases": {
                    one.version: [
                        vars(finding) | {"stops": finding.stops}
                        for finding in use.findings(one.schemas, reference.schemas)
                    ]
                    for one in releases
                },
            }
            for use in used
        ],
    }
