"""One thread and a fresh, printed seed for every test of the operators."""

import importlib
import random
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_random_inputs() -> Iterator[None]:
    """Fresh inputs each time; pytest shows the printed seed when the test fails."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seed = random.SystemRandom().randrange(2**31)
    print(f"torch.manual_seed({seed})")
    torch.manual_seed(seed)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def npu(request: pytest.FixtureRequest, npu_device: torch.device) -> ModuleType:
    """The npu variant of the operator after which the test's folder is named; without torch_npu nothing imports it."""
    return importlib.import_module(f"ascend_patch.ops.{request.path.parent.name}.npu")
