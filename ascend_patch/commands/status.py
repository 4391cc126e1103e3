"""`ascend-patch status`: every declared patch, and whether it would apply in this environment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ascend_patch import __version__
from ascend_patch.commands import drift, megatron
from ascend_patch.commands.local import DEVICES, environment
from ascend_patch.commands.megatron import Megatron
from ascend_patch.commands.output import print_json, print_table
from ascend_patch.compat.upstream import has_dynamic_engine
from ascend_patch.config import Config
from ascend_patch.engine.apply import check_ids, skip_reason
from ascend_patch.engine.contract import Contract
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Environment, Patch
from ascend_patch.engine.report import read_json

HELP = "what is patched here, and what a run recorded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--device", choices=DEVICES, help="pretend this device (default: the best there is)")
    parser.add_argument("--megatron", metavar="PLACE", help="a folder, wheel or version instead of the installed one")
    parser.add_argument("--report", type=Path, metavar="FILE", help="show also what the run recorded in FILE")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 if a run would stop, or the recorded run had a failed patch."""
    from ascend_patch.features import PATCHES

    place = megatron.resolve(arguments.megatron) if arguments.megatron else megatron.installed()
    where = environment(place.version, arguments.device)
    disabled = Config.from_environment().disabled
    check_ids(disabled, PATCHES)
    contract = Contract.load()
    engine = _engine(place)
    rows = [expectation(patch, where, place, contract, disabled) for patch in PATCHES]
    report = read_json(arguments.report) if arguments.report else {"patches": [], "operators": {}}
    recorded, operators = _recorded(report, arguments.report), _operators(report, arguments.report)
    for row in rows:
        row["run"] = recorded.get((row["id"], row["target"]), []) if arguments.report else None
    if arguments.json:
        about: dict[str, Any] = {"ascend_patch": __version__, "device": where.device, "megatron": place.version}
        ran = {"operators": report["operators"]} if arguments.report else {}
        about["generation"] = engine
        print_json(about | {"origin": place.origin, "patches": rows} | ran)
    else:
        print(f"ascend_patch {__version__} · device {where.device} · Megatron-LM {place.version} ({place.origin})")
        if engine is None:
            print("Generation and evaluation need Megatron-LM 0.17.1 or newer, or a checkout.")
        elif engine == "static":
            print("Generation and evaluation take the static inference engine: one request at a time, no beam search.")
        print_table(*_table(rows, arguments.report is not None))
        if operators:
            print()
            print_table(["operator", "chosen", "calls in the run", "detail"], operators)
    failed = any(entry["status"] == "failed" for entries in recorded.values() for entry in entries)
    return int(failed or any(row["state"] == "fails" for row in rows))


def expectation(
    patch: Patch,
    where: Environment,
    place: Megatron,
    contract: Contract,
    disabled: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """What would become of `patch`: `state` is "applies", "skipped", "fails" or "not shipped"."""
    row: dict[str, Any] = {
        "id": patch.id,
        "target": patch.target,
        "mode": patch.mode,
        "state": "applies",
        "detail": "",
    }
    reason = skip_reason(patch, where, disabled)
    if reason is not None:
        return row | {"state": "skipped", "detail": reason}
    found = drift.cell(patch, contract, place)
    if not found.shipped:
        return row | {"state": "not shipped", "detail": f"{patch.module} is not part of this installation"}
    detail = "; ".join(map(str, found.findings))
    return row | {"state": "fails" if found.stops_a_run else "applies", "detail": detail}


def _engine(place: Megatron) -> str | None:
    """Which of upstream's inference engines generates: "dynamic", "static", or None where nothing loads a model."""
    if has_dynamic_engine(place.version):
        return "dynamic"
    return "static" if place.tree.source("megatron.training") is not None else None


def _recorded(report: dict[str, Any], path: Path | None) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Entries of the report by id and target: rows with disjoint version ranges share both."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    try:
        for entry in report["patches"]:
            found.setdefault((entry["id"], entry["target"]), []).append(entry)
    except (KeyError, TypeError) as error:
        raise _not_a_report(path, error) from error
    return found


def _operators(report: dict[str, Any], path: Path | None) -> list[list[str]]:
    """A row an operator: its variant, its calls as "permute 8 npu, 1 torch; unpermute 9 npu", why others took some."""
    try:
        return [
            [
                operator,
                found["variant"],
                "; ".join(
                    f"{function} " + ", ".join(f"{count:,} {variant}" for variant, count in by_variant.items())
                    for function, by_variant in found["calls"].items()
                )
                or "none",
                "; ".join(f"{count:,} unsupported: {reason}" for reason, count in found["unsupported"].items()),
            ]
            for operator, found in report["operators"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise _not_a_report(path, error) from error


def _not_a_report(path: Path | None, error: Exception) -> AscendPatchError:
    return AscendPatchError(f"{path} is not a report of ascend_patch: {error!r} is missing in it.")


def _table(rows: list[dict[str, Any]], with_run: bool) -> tuple[list[str], list[list[str]]]:
    header = ["patch", "target", "here", *(["in the run"] if with_run else []), "detail"]
    table = []
    for row in rows:
        runs = row["run"] or []
        recorded = ", ".join(dict.fromkeys(entry["status"] for entry in runs)) or "not recorded"
        details = dict.fromkeys((row["detail"], *(entry["detail"] for entry in runs)))  # a reason to skip is in both
        detail = "; ".join(text for text in details if text)
        table.append([row["id"], row["target"], row["state"], *([recorded] if with_run else []), detail])
    return header, table
