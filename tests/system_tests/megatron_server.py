"""Megatron jobs without the start: one process imports everything, and forks the ranks of each job.

What takes longest in a job of a tiny model is the import of torch and of Megatron-LM, in every rank. Here it is done
once, by ``python -m tests.system_tests.megatron_server``, which :class:`Server` starts and talks to: a line of JSON
with a job on its standard input, a line with the exit code on its standard output. In each forked rank a script runs
as ``__main__``, with the arguments, the environment and the process groups of any other job.
"""

import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import psutil

from tests.system_tests.launcher import ROOT, Run, environment, single_process

MOST_PROCESSES = 8
"""Ranks that a job may have."""
IMPORTED = (
    "ascend_patch.pretrain_gpt",
    "megatron.core.tokenizers.text.text_tokenizer",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "sympy",
)
"""What a job would import: the entry, and what it imports late."""


class Server:
    """The test's end; a context manager. All ranks of all jobs are in one process group, which ends with it.

    Args:
        folder: for the logs of the jobs.
        megatron: folder to put before the installed Megatron.
        variables: further ones for the environment in which Megatron is imported.
    """

    def __init__(self, folder: Path, megatron: Path | None = None, variables: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._jobs = 0
        self._log = folder / "server.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=ROOT,
                # The cpu device shows as many devices as the first import finds ranks.
                env=environment(
                    megatron,
                    ASCEND_PATCH="1",
                    ASCEND_PATCH_DEVICE="cpu",
                    LOCAL_WORLD_SIZE=str(MOST_PROCESSES),
                    **(variables or {}),
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def run(self, script: Path, arguments: Sequence[object], processes: int = 1, timeout: float = 120.0) -> Run:
        """Run ``script`` as ``__main__`` in ``processes`` ranks; returns what they left behind."""
        self._jobs += 1
        log = self._folder / f"job{self._jobs}.log"
        words = [str(script), *map(str, arguments)]
        job = {"words": words, "processes": processes, "log": str(log), "timeout": timeout}
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        assert answer, f"the server ended with {self._process.wait()}\n{self._log.read_text()[-4000:]}"
        return Run(" ".join(words), int(answer), log.read_text(errors="replace"))

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def main() -> None:
    """The server: import, then a job a line until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    for name in IMPORTED:
        importlib.import_module(name)
    _adopt_orphans()
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        sys.exit(f"The imports started {len(threads) - 1} threads; a process with threads must not fork.")
    for line in sys.stdin:
        answers.write(f"{_run(**json.loads(line))}\n")
        answers.flush()


def _run(words: list[str], processes: int, log: str, timeout: float) -> int:
    """Fork the ranks and wait for them; returns the exit code of the first that failed, or 0."""
    address = single_process()
    with open(log, "a") as stream:
        try:
            ranks = {_fork(words, rank, processes, address, stream) for rank in range(processes)}
            return _wait(ranks, time.monotonic() + timeout, stream)
        finally:
            _end_all()


def _fork(words: list[str], rank: int, processes: int, address: dict[str, str], log: TextIO) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= address | {name: str(value) for name, value in sizes.items()}
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(running: set[int], deadline: float, log: TextIO) -> int:
    """Until all have ended, or one has failed: the others would wait for it."""
    while running:
        for process in list(running):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                running.discard(process)
                if code := os.waitstatus_to_exitcode(status):
                    return code
        if time.monotonic() > deadline:
            print("killed: it ran past its time limit", file=log)
            return -signal.SIGKILL
        select.select([], [], [], 0.02)
    return 0


def _adopt_orphans() -> None:
    """Become the parent of what a killed rank leaves behind: the processes in which upstream saves, 0.3 GB each.

    See prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _end_all() -> None:
    """Kill all that is there of a job."""
    while found := psutil.Process().children(recursive=True):
        for process in found:
            with suppress(psutil.NoSuchProcess):  # a child's child, which it has waited for
                process.kill()
        psutil.wait_procs(found)


if __name__ == "__main__":
    main()
