"""Attention of 2, 4 and 8 ranks equals that of one, forward and backward, for every communication type."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import pytest

from tests.unit_tests.context_parallel.cases import CASES

pytestmark = pytest.mark.xdist_group("context_parallel")  # one worker: they share the runs

WORKER = "tests.unit_tests.context_parallel.worker"

Results = list[dict[str, str | None]]
"""Of each rank: name of the case -> None or its traceback."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Results]:
    """results(device, ranks) of every case of at most so many."""

    @cache
    def results(device: str, ranks: int) -> Results:
        folder = tmp_path_factory.mktemp(device)
        seed = random.randrange(10**6)
        environment = {**os.environ, "ASCEND_SIM_DEVICES": str(ranks), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", WORKER, device, str(ranks), str(folder), str(seed)]
        log = folder / "output"
        with log.open("w") as output:
            subprocess.run(command, env=environment, stdout=output, stderr=output, timeout=240)
        print(f"seed {seed}")
        files = [folder / f"rank{rank}.json" for rank in range(ranks)]
        if not all(file.exists() for file in files):
            pytest.fail(f"seed {seed}\n{log.read_text()[-4000:]}")
        return [json.loads(file.read_text()) for file in files]

    return results


def check(found: Results, name: str) -> None:
    for rank, result in enumerate(found):
        assert name in result, f"rank {rank} did not get there: {[e for e in result.values() if e]}"
        assert result[name] is None, f"rank {rank}: {result[name]}"


@pytest.mark.parametrize("name", CASES)
def test_exact(results: Callable[[str, int], Results], name: str) -> None:
    check(results("cpu", 8), name)


@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.ranks <= 4])
def test_exact_on_npu(results: Callable[[str, int], Results], name: str) -> None:
    check(results("npu", 4), name)


@pytest.mark.npu
@pytest.mark.slow
@pytest.mark.usefixtures("npu_device")
@pytest.mark.parametrize("name", CASES)
def test_exact_on_eight_npus(results: Callable[[str, int], Results], name: str) -> None:
    check(results("npu", 8), name)
