"""Starting a training job as a user does, and reading what it printed.

A job is a process group of its own: whatever a test does to it, or however long it hangs, nothing of it is left.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_LINE = re.compile(r"iteration +(\d+)/ *\d+ \|(.*)")
_FIELD = re.compile(r" ([a-z_ ]+): +([-+.\dENan]+) (?=\|)")
_OURS = re.compile(r"^(?:\[rank\d+\]: )?ascend_patch: .*$", re.MULTILINE)  # torch.distributed adds the rank


@dataclass(frozen=True)
class Iteration:
    """One logged iteration; the numbers are exactly those printed, so that equal means equal in print."""

    loss: Decimal
    aux_loss: Decimal | None
    grad_norm: Decimal


@dataclass(frozen=True)
class Run:
    """What a job that has ended left behind."""

    command: str
    returncode: int
    output: str

    @property
    def iterations(self) -> dict[int, Iteration]:
        """Number -> what was logged of it. Mind that upstream's second line is the mean of the first two."""
        found = {}
        for number, rest in _LINE.findall(self.output):
            fields = dict(_FIELD.findall(rest))
            if "lm loss" in fields:
                aux = fields.get("load_balancing_loss")
                found[int(number)] = Iteration(
                    Decimal(fields["lm loss"]), Decimal(aux) if aux else None, Decimal(fields["grad norm"])
                )
        return found

    @property
    def losses(self) -> dict[int, Decimal]:
        """Number of the iteration -> printed loss, without the one that is a mean (see :attr:`iterations`)."""
        logged = self.iterations
        second = sorted(logged)[1:2]
        return {number: entry.loss for number, entry in logged.items() if number not in second}

    @property
    def paragraphs(self) -> list[str]:
        """What ascend_patch said about a failure."""
        return _OURS.findall(self.output)

    def succeeded(self) -> "Run":
        """This run, if it ended well; otherwise the test fails with its output."""
        assert self.returncode == 0, f"exit code {self.returncode} of {self.command}\n{self.tail()}"
        return self

    def failed(self) -> "Run":
        """This run, if it ended with an error of its own (not by a signal or the time limit)."""
        assert self.returncode > 0, f"exit code {self.returncode} of {self.command}\n{self.tail()}"
        return self

    def tail(self, lines: int = 60) -> str:
        """The end of the output, for a failure message."""
        return "\n".join(self.output.splitlines()[-lines:])


def environment(megatron: Path | None = None, **changes: str | None) -> dict[str, str]:
    """A user's environment: one thread a process, ``megatron`` first on the path, no settings of ascend_patch.

    Of the inherited path only torch_npu stays, which `ascend-sim run` has put there.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ASCEND_PATCH", "PYTEST"))}
    path = [str(folder) for folder in (megatron, ROOT) if folder is not None]
    path += [p for p in inherited.get("PYTHONPATH", "").split(os.pathsep) if p and (Path(p) / "torch_npu").is_dir()]
    own = {
        "OMP_NUM_THREADS": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONWARNINGS": "ignore",  # or a failing test shows little but "Apex is not installed"
    }
    return {name: value for name, value in {**inherited, **own, **changes}.items() if value is not None}


def train(
    arguments: Sequence[str],
    *,
    processes: int = 1,
    megatron: Path | None = None,
    script: Path | None = None,
    variables: Mapping[str, str] | None = None,
    timeout: float = 240.0,
    watch: Callable[[str, int], object] | None = None,
) -> Run:
    """Train with ``arguments``: the bundled entry, or ``script`` with ``ASCEND_PATCH=1``.

    Args:
        processes: 1 starts Python directly, which saves torchrun's own start; more go through torchrun.
        megatron: folder to put before the installed Megatron.
        watch: called with every line of output and the id of the process group, while the job runs.
    """
    settings = dict(variables or {})
    entry = ["-m", "ascend_patch.run"]
    if script is not None:
        settings["ASCEND_PATCH"] = "1"
        entry = [str(script)]
    if processes == 1:
        command = [sys.executable, *entry, *arguments]
        settings |= single_process()
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *torchrun, *entry, *arguments]
    return run(command, environment(megatron, **settings), timeout, watch)


def run(
    command: Sequence[str],
    variables: Mapping[str, str],
    timeout: float = 120.0,
    watch: Callable[[str, int], object] | None = None,
) -> Run:
    """Run ``command`` in an empty folder; both streams end in one text. After ``timeout`` seconds it is killed."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            env=dict(variables),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log if watch is None else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            if watch is not None:
                for line in process.stdout:
                    log.write(line)
                    watch(line, process.pid)
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            log.write(f"\nkilled by the test after {timeout} s\n")
        finally:
            _kill_group(process.pid)
            process.wait()
        log.seek(0)
        return Run(" ".join(command), process.returncode, log.read())


def single_process() -> dict[str, str]:
    """What torchrun would tell the only process of a job."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
