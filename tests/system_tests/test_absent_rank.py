"""A rank that never enters a collective: the others end within the timeout, and name it and the collective."""

import re
import socket
import time
from pathlib import Path

import pytest

from ascend_patch.absent import GRACE
from tests.system_tests import absent
from tests.system_tests.launcher import Run, train
from tests.system_tests.mixtral import EP2, PP2, TP2_SP, tiny, title

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MINUTES = 1
SAID, ENDED = 30, 120
"""Seconds that it may take on a busy machine until a rank has said so, and until all processes have ended."""
AWAY = 9
"""The call from which the rank stays away: after the first step."""

device = pytest.mark.parametrize("device", ["cpu", pytest.param("npu", marks=pytest.mark.npu)])


def job(device: str, rank: int, processes: int, layout: dict) -> Run:
    """A job in which ``rank`` stays away; the others end in time and name that rank alone."""
    when: dict[str, float] = {}

    def watch(line: str, _: int) -> None:
        for event in (f"rank {rank} stays away", "lost another rank"):
            if event in line:
                when.setdefault(event, time.monotonic())

    ended = train(
        [str(rank), str(AWAY), *tiny(**layout | {"distributed_timeout_minutes": MINUTES})],
        processes=processes,
        script=Path(absent.__file__),
        variables={"ASCEND_PATCH_DEVICE": device},
        timeout=500,
        watch=watch,
    ).failed()
    end = time.monotonic()
    away, said = when.values()
    assert said - away < 60 * MINUTES + GRACE + SAID
    assert end - away < 60 * MINUTES + GRACE + ENDED
    assert any("Timed out waiting 60000ms" in paragraph for paragraph in ended.paragraphs), ended.tail()
    for paragraph in ended.paragraphs:
        assert re.findall(r"\. (Ranks? .*?) did not come\. ", paragraph) == [f"Rank {rank} on {socket.gethostname()}"]
        assert "--distributed-timeout-minutes" in paragraph
    return ended


@device
def test_the_job_ends(device: str) -> None:
    (paragraph,) = job(device, 1, 2, EP2).paragraphs
    assert "rank 0 lost another rank in all_to_all_single of group EXPERT_MODEL_PARALLEL_GROUP, ranks 0 1" in paragraph


@pytest.mark.parametrize("layout", [TP2_SP | EP2, PP2 | EP2], ids=title)
@device
def test_ranks_that_wait_for_waiting_ranks(device: str, layout: dict) -> None:
    """Ranks 0 and 3 wait for rank 1, and rank 2 for one of these. What stages send each other is of no known group."""
    job(device, 1, 4, layout)
