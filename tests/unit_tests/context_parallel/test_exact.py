"""Attention of 2, 4 and 8 ranks equals that of one, forward and backward, for every communication type."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit_tests.context_parallel.cases import CASES

RANKS = 8


def results(kind: str, folder: Path) -> list[dict[str, str | None]]:
    """Of each rank: name of the case -> None or its traceback."""
    seed = random.randrange(10**6)
    environment = {**os.environ, "ASCEND_SIM_DEVICES": str(RANKS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit_tests.context_parallel.worker", kind, str(RANKS), str(folder), str(seed)]
    log = folder / "output"
    with log.open("w") as output:
        subprocess.run(command, env=environment, stdout=output, stderr=output, timeout=240)
    print(f"seed {seed}")
    files = [folder / f"rank{rank}.json" for rank in range(RANKS)]
    if not all(file.exists() for file in files):
        pytest.fail(f"seed {seed}\n{log.read_text()[-4000:]}")
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str | None]]:
    return results("cpu", tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="module")
def on_npu(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str | None]]:
    return results("npu", tmp_path_factory.mktemp("npu"))


def check(found: list[dict[str, str | None]], name: str) -> None:
    for rank, result in enumerate(found):
        assert name in result, f"rank {rank} did not get there: {[e for e in result.values() if e]}"
        assert result[name] is None, f"rank {rank}: {result[name]}"


@pytest.mark.xdist_group("context_parallel")
@pytest.mark.parametrize("name", CASES)
def test_exact(on_cpu: list[dict[str, str | None]], name: str) -> None:
    check(on_cpu, name)


@pytest.mark.npu
@pytest.mark.xdist_group("context_parallel")
@pytest.mark.usefixtures("npu_device")
@pytest.mark.parametrize("name", CASES)
def test_exact_on_npu(on_npu: list[dict[str, str | None]], name: str) -> None:
    check(on_npu, name)
