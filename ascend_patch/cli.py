"""`ascend-patch`: what is patched and why, whether upstream has drifted, what is wrong with this machine,
whether two runs agree, and which layout to train in.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ascend_patch import __version__
from ascend_patch.commands import compare, contract, doctor, drift, explain, operators, plan, status, trace
from ascend_patch.engine.errors import AscendPatchError

_COMMANDS = {
    "status": status,
    "explain": explain,
    "drift": drift,
    "operators": operators,
    "doctor": doctor,
    "compare": compare,
    "trace": trace,
    "contract": contract,
    "plan": plan,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0: all is well; 1: the command found something that would stop a run; 2: it could not be carried out.
    """
    parser = argparse.ArgumentParser(prog="ascend-patch", description=__doc__)
    parser.add_argument("--version", action="version", version=f"ascend_patch {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in _COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.__doc__))
    arguments = parser.parse_args(argv)
    try:
        return _COMMANDS[arguments.command].run(arguments)
    except AscendPatchError as error:
        print(f"ascend-patch: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `ascend-patch status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again when it flushes
        return 0


if __name__ == "__main__":
    sys.exit(main())
