"""`ascend-sim`: runs a command on a simulated Ascend NPU, and reports what it asked of the device."""

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ascend_sim import __version__, report
from ascend_sim.build import BuildError, build, find_pair, libraries
from ascend_sim.report import ReportError
from ascend_sim.settings import DEFAULT_STEP, Settings, cache_directory, environment


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of the console script.

    Returns:
        What the command returned (``run``); 0, or 1 if the simulator would not start here (``doctor``), or 2 if the
        command could not be carried out.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.function(arguments)
    except (BuildError, ReportError) as error:
        print(f"ascend-sim: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Run a command on the simulated device and gather its counters."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise BuildError("No command was given. Say `ascend-sim run -- python script.py`.")
    pair = find_pair(download=True)
    with _directory_for(arguments.report) as directory:
        settings = Settings(build(pair), arguments.step, directory, arguments.shapes_only)
        env = environment(
            settings, pair.torch_npu.parent, devices=arguments.devices, memory_mib=round(arguments.memory * 1024)
        )
        code = _run(command, env)
        if directory is not None:
            processes = report.gather(directory, arguments.report)
            print(f"ascend-sim: {arguments.report}: counters of {processes} processes", file=sys.stderr)
    return code


def doctor(arguments: argparse.Namespace) -> int:
    """Say what the simulator needs and has, and try it on one operator."""
    print(f"ascend_sim {__version__}, cache {cache_directory()}")
    for tool in ("g++", "nm"):
        print(f"{tool}: {shutil.which(tool) or 'missing; install g++ and binutils'}")
    pair = find_pair(download=False)
    print(pair)
    directory = libraries(pair)
    if not directory.is_dir():
        print("libraries: not built yet; `ascend-sim run` builds them")
        return 0
    print(f"libraries: {directory}")
    env = environment(Settings(directory), pair.torch_npu.parent, devices=1, memory_mib=1024)
    code = _run([sys.executable, "-c", "import torch; print((torch.ones(2, device='npu') * 2).sum().item())"], env)
    print("one operator on the device: " + ("works" if code == 0 else f"failed ({code})"))
    return min(code, 1)


def show(arguments: argparse.Namespace) -> int:
    """Print the last step of one report, or of several side by side."""
    reports = {str(path): report.read(path) for path in arguments.reports}
    if len(reports) < len(arguments.reports):
        raise ReportError("The same report was named twice.")
    ratio = ["ratio"] if len(reports) > 1 else []
    tables = {"last step": report.summary(reports, arguments.rank)}
    tables |= {kind: report.by_name(reports, kind, arguments.rank) for kind in ("launches", "syncs", "collectives")}
    console = Console(width=None if sys.stdout.isatty() else 120)
    for title, rows in tables.items():
        table = Table(title=f"{title}, rank {arguments.rank} (simulated device)")
        for column in (title, *reports, *ratio):
            table.add_column(column, justify="left" if column == title else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    return 0


def assumptions(arguments: argparse.Namespace) -> int:
    """Print, in Markdown, where each kernel's semantics come from and what they assume."""
    from ascend_sim.kernels.registry import assumptions_markdown

    print(assumptions_markdown(), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ascend-sim", description=__doc__)
    parser.add_argument("--version", action="version", version=f"ascend_sim {__version__}")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("run", help=run.__doc__, description=run.__doc__)
    command.add_argument("--devices", type=int, default=8, help="devices a process sees (default: 8)")
    command.add_argument("--memory", type=float, default=64.0, metavar="GiB", help="of each device (default: 64)")
    command.add_argument("--report", type=Path, metavar="FILE", help="write the counters of all processes to FILE")
    command.add_argument("--shapes-only", action="store_true", help="attention allocates its results, not computed")
    command.add_argument("--step", default=DEFAULT_STEP, metavar="MODULE:FUNCTION", help="a call of it is one step")
    command.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    command.set_defaults(function=run)

    command = commands.add_parser("doctor", help=doctor.__doc__, description=doctor.__doc__)
    command.set_defaults(function=doctor)

    command = commands.add_parser("report", help=show.__doc__, description=show.__doc__)
    command.add_argument("reports", nargs="+", type=Path, metavar="FILE")
    command.add_argument("--rank", type=int, default=0)
    command.set_defaults(function=show)

    command = commands.add_parser("assumptions", help=assumptions.__doc__, description=assumptions.__doc__)
    command.set_defaults(function=assumptions)
    return parser


@contextlib.contextmanager
def _directory_for(target: Path | None) -> Iterator[Path | None]:
    if target is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="ascend_sim-") as directory:
        yield Path(directory)


def _run(command: Sequence[str], env: dict[str, str]) -> int:
    """Run a command and pass on SIGTERM, as a job's manager sends it; its exit code, 128 + n if a signal ended it."""
    try:
        process = subprocess.Popen(command, env=env)
    except FileNotFoundError as error:
        raise BuildError(f"The command {command[0]!r} was not found.") from error
    before = signal.signal(signal.SIGTERM, lambda received, frame: process.send_signal(received))
    # A terminal sends this one to the command as well; what it then does is waited for.
    interrupted = signal.signal(signal.SIGINT, lambda received, frame: None)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupted)
    return code if code >= 0 else 128 - code
