"""The benchmark's end of a worker process: start it, ask it for turns, end it."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_TAIL = 15


class WorkerError(RuntimeError):
    """A worker ended before it was asked to; the message ends with the last lines it printed."""


class Worker:
    """A process that runs steps behind a :class:`benchmarks.gate.Gate`; a context manager that ends it.

    Args:
        command: the arguments of the Python interpreter.
        environment: all variables of the process.
        log: the file that gets what it prints.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise WorkerError("The process was started without pipes.")
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._is_ready = False

    def run(self, steps: int) -> dict[str, Any]:
        """Let it do ``steps`` steps; the first call waits until it has started.

        Returns:
            Its answer: ``seconds`` and ``cpu_seconds``, one number a step, and what the worker adds.

        Raises:
            WorkerError: it ended instead.
        """
        if not self._is_ready:
            self._answer()
            self._is_ready = True
        return self.ask(steps)

    def ask(self, request: object) -> dict[str, Any]:
        """What it answers to ``request``, which goes to it as JSON.

        Raises:
            WorkerError: it ended instead.
        """
        try:
            self._requests.write(f"{json.dumps(request)}\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._failure() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._replies.readline()
        if not line:
            raise self._failure()
        return json.loads(line)

    def _failure(self) -> WorkerError:
        code = self._process.wait()
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL:])
        return WorkerError(f"A contestant ended with exit code {code}; {self._log} has all of it:\n{tail}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._requests.close()  # what a gate takes as the end
        self._replies.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
