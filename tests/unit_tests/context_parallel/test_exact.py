"""Attention of 2, 4 and 8 ranks equals that of one, forward and backward, for every communication type."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.unit_tests.context_parallel.cases import CASES
from tests.unit_tests.ranks import Results, require_passed, run_worker

pytestmark = pytest.mark.xdist_group("context_parallel")  # one worker: they share the runs

WORKER = "tests.unit_tests.context_parallel.worker"

Run = Callable[[str, int], Results]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """results(device, ranks) of every case of at most so many."""

    @cache
    def results(device: str, ranks: int) -> Results:
        return run_worker(WORKER, ranks, tmp_path_factory.mktemp(device), device)

    return results


@pytest.mark.parametrize("name", CASES)
def test_exact(results: Run, name: str) -> None:
    require_passed(results("cpu", 8), name)


@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.ranks <= 4])
def test_exact_on_npu(results: Run, name: str) -> None:
    require_passed(results("npu", 4), name)


@pytest.mark.npu
@pytest.mark.slow
@pytest.mark.usefixtures("npu_device")
@pytest.mark.parametrize("name", CASES)
def test_exact_on_eight_npus(results: Run, name: str) -> None:
    require_passed(results("npu", 8), name)
