"""Starting a training job as a user does, and reading what it printed.

A job's processes have a mark in their environment: whatever a test does to them, or however long they hang, nothing is
left. (A process group would not do: torchrun gives each rank one of its own, and a rank that is killed leaves those
processes behind in which upstream saves its checkpoints.)
"""

import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TextIO

import psutil

ROOT = Path(__file__).resolve().parents[2]

_MARK = "SYSTEM_TEST_JOB"
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
        "PYTHONUNBUFFERED": "1",  # what a killed process has printed is there
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
        watch: called with every line of output and the id of the job's first process, while the job runs.
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
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log, ThreadPoolExecutor(1) as reader:
        process = subprocess.Popen(
            command,
            env={**variables, _MARK: mark},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log if watch is None else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        watched = reader.submit(_watch, process, log, watch) if watch is not None else None
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            print(f"\nkilled by the test after {timeout} s", file=log, flush=True)
        finally:
            _kill_marked(mark)
            process.wait()
        if watched is not None:
            watched.result()
        log.seek(0)
        return Run(" ".join(command), process.returncode, log.read())


def single_process() -> dict[str, str]:
    """What torchrun would tell the only process of a job."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}


def free_port() -> int:
    """A port to listen at. Not one of those that the kernel gives to outgoing connections, from 32768 on: until a job's
    first rank listens, one of the many of other jobs could take it."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("localhost", port))
            return port


def _watch(process: subprocess.Popen, log: TextIO, watch: Callable[[str, int], object]) -> None:
    """Until all that hold the other end of the pipe have ended."""
    for line in process.stdout:
        log.write(line)
        watch(line, process.pid)


def _kill_marked(mark: str) -> None:
    """Kill every process with this mark, until none is left that could have started another."""
    while found := [process for process in psutil.process_iter() if _mark_of(process) == mark]:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=5)


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(_MARK)
    except psutil.Error:
        return None  # it has ended, or is another user's
