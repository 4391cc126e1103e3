"""`ascend-patch explain ID`: what one patch does, why, and whether it would apply here."""

from __future__ import annotations

import argparse
from typing import Any

from ascend_patch.commands import megatron
from ascend_patch.commands.catalogue import applies, recorded_in
from ascend_patch.commands.local import environment
from ascend_patch.commands.megatron import Megatron
from ascend_patch.commands.output import print_json
from ascend_patch.commands.status import expectation
from ascend_patch.config import Config
from ascend_patch.engine.apply import check_ids
from ascend_patch.engine.contract import Contract
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Patch

HELP = "what one patch does and why"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("id", help="id of a patch, as `ascend-patch status` lists them")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print every row of the id."""
    from ascend_patch.features import PATCHES

    check_ids([arguments.id], PATCHES)
    contract = Contract.load()
    try:
        place = megatron.installed()
    except AscendPatchError:
        place = None  # a patch can be explained without any Megatron
    rows = [_explain(patch, contract, place) for patch in PATCHES if patch.id == arguments.id]
    if arguments.json:
        print_json({"id": arguments.id, "patches": rows})
        return 0
    print(arguments.id)
    for row in rows:
        print()
        for name, value in row.items():
            text = ", ".join(value) if isinstance(value, list) else value
            print(f"  {name.replace('_', ' '):<14} {text or '-'}")
    print(f"\nSwitch it off with ASCEND_PATCH_DISABLE={arguments.id}.")
    return 0


def _explain(patch: Patch, contract: Contract, place: Megatron | None) -> dict[str, Any]:
    here = "no Megatron-LM is installed"
    if place is not None:
        row = expectation(patch, environment(place.version), place, contract, Config.from_environment().disabled)
        here = f"{row['state']}{': ' if row['detail'] else ''}{row['detail']} (Megatron-LM {place.version})"
    return {
        "target": patch.target,
        "mode": patch.mode,
        "implementation": patch.impl,
        "reason": patch.reason,
        "remove_when": patch.remove_when,
        "megatron": patch.upstream,
        "applies": applies(patch),
        "relies_on": list(patch.consumers),
        "recorded_for": recorded_in(patch, contract),
        "here": here,
    }
