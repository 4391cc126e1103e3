"""Collectives of the simulated device in 2 and 8 processes, each against what one process computes in float64."""

from functools import cache

import pytest

from tests.unit_tests.ascend_sim.collectives_worker import checks
from tests.unit_tests.ranks import require_passed, run_worker

pytestmark = [pytest.mark.simulator, pytest.mark.usefixtures("npu_device")]

WORKER = "tests.unit_tests.ascend_sim.collectives_worker"
MODULES = {2: ["collectives_checks", "parallel_checks", "collectives_errors"], 8: ["collectives_checks"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """results(size): of the checks in so many processes."""

    @cache
    def results(size):
        return run_worker(WORKER, size, tmp_path_factory.mktemp(f"ranks{size}"), *MODULES[size])

    return results


@pytest.mark.parametrize(
    ("size", "check"), [(size, check) for size, modules in MODULES.items() for check in checks(modules)]
)
def test_collective(results, size, check):
    require_passed(results(size), check)
