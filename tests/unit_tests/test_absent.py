"""Ranks that wait in vain name the rank that did not come, or has ended, and its host; in bounded time."""

import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import PrefixStore, TCPStore

from ascend_patch import absent
from ascend_patch.absent import GRACE, UNKNOWN, Job, Waited
from tests.unit_tests.absent_worker import LOST, RANKS, WAIT

HERE = socket.gethostname()
SLOW = 30.0
"""Seconds that a busy machine may add."""


def test_what_the_others_say(tmp_path: Path) -> None:
    timeout = WAIT.total_seconds()
    expected = {
        "away": (f"Rank {LOST} on {HERE} did not come. ", timeout + GRACE),
        "handle": (f"Rank {LOST} on {HERE} did not come. ", timeout + GRACE),
        "killed": (f"Rank {LOST} on {HERE} did not come. ", timeout + GRACE),
        "failed": (f"Rank {LOST} on {HERE} has ended with ValueError: boom. Its output", 0),
        "store_killed": (UNKNOWN, 0),
        "store_stopped": (UNKNOWN, timeout + GRACE + 2),
    }
    command = [sys.executable, "-m", "tests.unit_tests.absent_worker", str(tmp_path), *expected]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    for case, (why, seconds) in expected.items():
        for rank in set(range(RANKS)) - {LOST}:
            said = tmp_path / f"{case}{rank}.txt"
            assert said.exists(), f"{case}, rank {rank}\n{done.stderr}"
            paragraph, waited = said.read_text().splitlines()[-2:]
            where = {0: "ROW, ranks 0 1", 2: "ROW, ranks 2 3", 3: "COLUMN, ranks 1 3"}[rank]
            where = "" if case == "handle" else f" in all_reduce of group {where}"
            assert paragraph.startswith(f"[rank{rank}]: ascend_patch: rank {rank} lost another rank{where}: "), case
            assert f". {why}" in paragraph, case
            assert float(waited) < seconds + SLOW, case


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Job]:
    """A rank of a job of ten, with its own connection to the store."""
    monkeypatch.setattr(absent, "GRACE", 0.5)
    monkeypatch.setattr(absent, "_REPLY", SLOW)
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)

    def rank(number: int) -> Job:
        return Job(number, 10, PrefixStore("test", TCPStore("localhost", server.port, is_master=False)))

    return rank


def answer(waiting: dict[Job, tuple[int, ...] | None], timed_out: bool = True) -> str:
    """What each of these ranks, which waited for those ranks, gets."""
    with ThreadPoolExecutor(len(waiting)) as pool:
        answers = pool.map(lambda job: job.ask(_group(waiting[job]), timed_out), waiting)
    (one,) = set(answers)
    return one


def _group(ranks: tuple[int, ...] | None) -> Waited | None:
    return ranks and Waited("barrier", "TEST", ranks)


def test_those_that_wait_for_nobody_are_named(ranks: Callable[[int], Job]) -> None:
    waiting = {ranks(0): (0, 1), ranks(1): (1, 2, 3), ranks(3): (3, 4)}
    assert answer(waiting).startswith("Ranks 2 4 did not come. ")


def test_hosts_are_named(ranks: Callable[[int], Job], monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 5):
        monkeypatch.setattr(socket, "gethostname", lambda number=number: f"node{number // 4}")
        ranks(number).leave_host()
    assert answer({ranks(0): (0, 1, 2, 5, 7)}).startswith("Ranks 1 2 on node0, 5 on node1, 7 did not come. ")


def test_many_are_not_all_named(ranks: Callable[[int], Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absent, "_SHOWN", 3)
    assert answer({ranks(0): tuple(range(10))}).startswith("Ranks 1 2 3 and 6 more did not come. ")


def test_an_unknown_group_is_the_job(ranks: Callable[[int], Job]) -> None:
    waiting = {ranks(number): None for number in range(10) if number != 7}
    assert answer(waiting).startswith("Rank 7 did not come. ")


def test_a_known_group_is_preferred(ranks: Callable[[int], Job]) -> None:
    assert answer({ranks(0): None, ranks(1): (1, 2)}).startswith("Rank 2 did not come. ")


def test_different_calls(ranks: Callable[[int], Job]) -> None:
    assert answer({ranks(0): (0, 1), ranks(1): (0, 1)}).startswith("No rank is missing: ")


def test_a_lost_connection_says_nothing_of_others(ranks: Callable[[int], Job]) -> None:
    assert answer({ranks(0): (0, 1, 2)}, timed_out=False) == UNKNOWN


def test_the_first_end_is_the_cause(ranks: Callable[[int], Job]) -> None:
    ranks(2).leave_end(ValueError())
    ranks(3).leave_end(KeyError("later"))
    assert answer({ranks(0): (0, 1)}) == "Rank 2 has ended with ValueError. Its output says more."
