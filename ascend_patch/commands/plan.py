"""`ascend-patch plan`: layouts of a training that fit, the cheapest first; their memory and messages, by formula."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ascend_patch.commands.options import positive
from ascend_patch.commands.output import print_json, print_table
from ascend_patch.commands.plan_page import page
from ascend_patch.engine.report import write_text
from ascend_patch.planning.communication import KINDS
from ascend_patch.planning.errors import PlanningError
from ascend_patch.planning.layout import Training
from ascend_patch.planning.models import MODELS, find
from ascend_patch.planning.plan import GIB, USABLE, Plan, plan

HELP = "layouts for a model and so many devices, with memory and communication by formula"
SHOWN = 10
SIZES = ("tp", "pp", "vpp", "ep", "etp", "cp", "dp", "micro")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--model", metavar="NAME", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--devices", type=positive, metavar="N", help="devices in all")
    parser.add_argument("--memory", type=positive, default=64, metavar="GIB", help="of a device (default: %(default)s)")
    parser.add_argument("--sequence-length", type=positive, default=4096, metavar="N", help="default: %(default)s")
    parser.add_argument("--global-batch-size", type=positive, default=1024, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write docs/planning.md instead (for developers)")


def run(arguments: argparse.Namespace) -> int:
    """Print the layouts.

    Raises:
        PlanningError: an unknown model, or no layout.
    """
    if arguments.markdown:
        write_text(arguments.markdown, page())
        return 0
    if arguments.model is None or arguments.devices is None:
        raise PlanningError(f"--model and --devices must be given; models are {', '.join(MODELS)}.")
    training = Training(find(arguments.model), arguments.sequence_length, arguments.global_batch_size)
    found = plan(training, arguments.devices, arguments.memory * GIB)
    if arguments.json:
        print_json(_data(training, arguments, found))
        return 0
    print(
        f"{training.model.name}, {arguments.devices} devices of {arguments.memory} GiB, {training.batch} samples of "
        f"{training.sequence} tokens, bf16, distributed optimizer.\n"
        f"Estimated by formula, not measured. Layouts that fit into {USABLE:.0%} of the memory: {len(found)}; "
        f"the first {min(SHOWN, len(found))}:"
    )
    print_table(_header(), [_row(one, found[0]) for one in found[:SHOWN]])
    print(
        "Memory in GiB of the device that needs most; sent: GiB that a device sends in a step; bubble: waiting, as a "
        "share of computing; cost: of a step, as a multiple of the first layout's. docs/planning.md has the formulas."
    )
    return 0


def _header() -> Sequence[str]:
    sizes = (*(size.upper() for size in SIZES[:-1]), "micro")
    memory = ("weights", "gradients", "optimizer", "activations", "temporary", "total")
    return (*sizes, "recompute", *memory, *(f"sent {kind}" for kind in KINDS), "bubble", "cost")


def _row(one: Plan, first: Plan) -> list[str]:
    parts = (*vars(one.memory).values(), one.memory.total, *one.sent.values())
    return [
        *(str(getattr(one.layout, size)) for size in SIZES),
        "full" if one.layout.recompute else "-",
        *(f"{number / GIB:.1f}" for number in parts),
        f"{one.bubble:.1%}",
        f"{one.cost / first.cost:.3f}",
    ]


def _data(training: Training, arguments: argparse.Namespace, found: Sequence[Plan]) -> dict[str, Any]:
    return {
        "estimated": True,
        "model": training.model.name,
        "devices": arguments.devices,
        "memory": arguments.memory * GIB,
        "sequence_length": training.sequence,
        "global_batch_size": training.batch,
        "layouts": [
            {
                **vars(one.layout),
                "memory": vars(one.memory) | {"total": one.memory.total},
                "sent": one.sent,
                "bubble": one.bubble,
                "cost": one.cost / found[0].cost,
            }
            for one in found
        ],
    }
