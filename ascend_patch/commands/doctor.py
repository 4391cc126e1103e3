"""`ascend-patch doctor`: what is wrong with this machine, each finding with the next step."""

from __future__ import annotations

import argparse

from ascend_patch.commands.checks import CHECKS
from ascend_patch.commands.machine import Machine
from ascend_patch.commands.output import print_json, print_table

HELP = "what is wrong with this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 if one of them stops a run."""
    machine = Machine.here()
    findings = [finding for check in CHECKS for finding in check(machine)]
    if arguments.json:
        print_json({"findings": [vars(finding) for finding in findings]})
    else:
        print_table(["", "what", "found"], [(f.level, f.check, f.found) for f in findings])
        for finding in findings:
            if finding.next_step:
                print(f"\n{finding.check}: {finding.next_step}")
    return int(any(finding.level == "error" for finding in findings))
