"""Process groups and collectives between two real Gloo processes; the checks are in collectives_worker.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit_tests.devices.cpu.collectives_worker import CHECKS

ROOT = Path(__file__).parents[4]
WORKER = Path(__file__).with_name("collectives_worker.py")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict[str, str]]:
    """What each rank says about each check."""
    directory = tmp_path_factory.mktemp("collectives")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(WORKER), str(directory)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", CHECKS)
def test_collective(outcomes, name):
    assert [outcome[name] for outcome in outcomes] == ["ok", "ok"]
