"""The two ends of the protocol, with a worker that only counts."""

import os
from pathlib import Path

import pytest

from benchmarks.worker import Worker, WorkerError

COUNTER = """
from benchmarks.gate import Gate
gate = Gate.on_standard_streams()
count = 0
while True:
    gate.step(count=count)
    print("a library prints step", count)
    count += 1
    if count == {last}:
        raise RuntimeError("worn out")
"""


def counter(tmp_path: Path, last: int = -1) -> Worker:
    return Worker(["-c", COUNTER.format(last=last)], os.environ, tmp_path / "worker.log")


def test_turns_are_as_long_as_asked(tmp_path: Path) -> None:
    with counter(tmp_path) as worker:
        first, second = worker.run(3), worker.run(2)
    assert (first["count"], second["count"]) == (3, 5)
    assert [len(first["seconds"]), len(second["cpu_seconds"])] == [3, 2]
    assert min(first["seconds"]) > 0.0


def test_what_is_printed_goes_to_the_log(tmp_path: Path) -> None:
    with counter(tmp_path) as worker:
        worker.run(2)
    assert (tmp_path / "worker.log").read_text().splitlines() == [
        "a library prints step 0",
        "a library prints step 1",
    ]


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with counter(tmp_path, last=2) as worker, pytest.raises(WorkerError, match="exit code 1(.|\n)*worn out"):
        worker.run(5)


def test_leaving_ends_the_process(tmp_path: Path) -> None:
    with counter(tmp_path) as worker:
        worker.run(1)
    assert worker._process.poll() == 0
