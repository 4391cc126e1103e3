"""How a worker process and the benchmark talk: a turn is asked for, run, and reported.

Lines on the worker's standard input and output. The benchmark writes how many steps a turn has; the worker
answers with one JSON object. Everything the worker's libraries print goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO


class Gate:
    """The worker's end: :meth:`step` stands before every step and returns when the step may begin.

    Args:
        requests: where the numbers of steps come from.
        replies: where the answers go.
    """

    def __init__(self, requests: TextIO, replies: TextIO) -> None:
        self._requests = requests
        self._replies = replies
        self._remaining = 0
        self._started: tuple[float, float] | None = None
        self._seconds: list[float] = []
        self._cpu_seconds: list[float] = []

    @classmethod
    def on_standard_streams(cls) -> "Gate":
        """Keep standard output for the answers and send what is printed from here on to standard error."""
        return cls(sys.stdin, _standard_output_for_answers())

    def step(self, **facts: object) -> None:
        """End the step before, if there was one, and wait for the next to be allowed.

        Args:
            facts: go into the answer when a turn ends here, for example the loss of its last step.

        Raises:
            SystemExit: the benchmark has no more turns.
        """
        now, cpu_now = time.perf_counter(), time.process_time()
        if self._started is not None:
            started, cpu_started = self._started
            self._seconds.append(now - started)
            self._cpu_seconds.append(cpu_now - cpu_started)
            self._remaining -= 1
        if self._remaining == 0:
            self._answer(facts)
            self._remaining = self._next_turn()
        self._started = time.perf_counter(), time.process_time()

    def _answer(self, facts: dict[str, object]) -> None:
        self._replies.write(json.dumps({"seconds": self._seconds, "cpu_seconds": self._cpu_seconds, **facts}) + "\n")
        self._replies.flush()
        self._seconds, self._cpu_seconds = [], []

    def _next_turn(self) -> int:
        line = self._requests.readline()
        if not line:
            raise SystemExit(0)
        return int(line)


def answer_on_standard_streams(prepare: Callable[[], Callable[[Any], dict[str, Any]]]) -> None:
    """A worker without steps: ``prepare`` returns what answers a request (:meth:`benchmarks.worker.Worker.ask`)."""
    replies = _standard_output_for_answers()
    answer = prepare()
    for line in sys.stdin:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")
        replies.flush()


def _standard_output_for_answers() -> TextIO:
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies
