"""Collectives of the simulated device in 2 and 8 processes, each against what one process computes in float64."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit_tests.ascend_sim.collectives_worker import checks

pytestmark = [pytest.mark.simulator, pytest.mark.usefixtures("npu_device")]

WORKER = Path(__file__).with_name("collectives_worker.py")
MODULES = {2: ["collectives_checks", "parallel_checks", "collectives_errors"], 8: ["collectives_checks"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By number of processes: for each rank, name of the check -> None or its traceback."""
    made = {}

    def of(size):
        if size not in made:
            made[size] = _launch(size, tmp_path_factory.mktemp(f"ranks{size}"))
        return made[size]

    return of


def _launch(size, directory):
    seed = random.randrange(10**6)
    environment = {**os.environ, "ASCEND_SIM_DEVICES": str(size), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(size), str(directory), str(seed), *MODULES[size]]
    log = directory / "output"
    with log.open("w") as output:
        code = subprocess.run(command, env=environment, stdout=output, stderr=output, timeout=240).returncode
    print(f"{size} processes, seed {seed}")
    files = [directory / f"rank{rank}.json" for rank in range(size)]
    if code or not all(file.exists() for file in files):
        pytest.fail(f"{size} processes, seed {seed}: exit status {code}\n{log.read_text()[-4000:]}")
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize(
    ("size", "check"), [(size, check) for size, modules in MODULES.items() for check in checks(modules)]
)
def test_collective(results, size, check):
    for rank, result in enumerate(results(size)):
        assert check in result, f"rank {rank} did not get there: {[e for e in result.values() if e]}"
        assert result[check] is None, f"rank {rank}: {result[check]}"
