"""A rank that never enters a collective: within the timeout the others end, and say which collective and whose."""

import time
from pathlib import Path

import pytest

from tests.system_tests import absent
from tests.system_tests.launcher import train
from tests.system_tests.mixtral import EP2, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MINUTES = 1
START_AND_END = 120
"""Seconds that the job may take beside its timeout."""
AWAY = 9
"""The call from which the rank stays away: after the first step."""


@pytest.mark.parametrize("device", ["cpu", pytest.param("npu", marks=pytest.mark.npu)])
def test_the_job_ends(device: str) -> None:
    began = time.monotonic()
    ended = train(
        ["1", str(AWAY), *tiny(**EP2 | {"distributed_timeout_minutes": MINUTES})],
        processes=2,
        script=Path(absent.__file__),
        variables={"ASCEND_PATCH_DEVICE": device},
        timeout=500,
    ).failed()
    assert time.monotonic() - began < 60 * MINUTES + START_AND_END
    assert "rank 1 stays away" in ended.output
    (paragraph,) = ended.paragraphs
    assert "rank 0 lost another rank in all_to_all_single of group EXPERT_MODEL_PARALLEL_GROUP, ranks 0 1" in paragraph
    assert "Timed out waiting 60000ms" in paragraph
    assert "--distributed-timeout-minutes" in paragraph
