"""One thread and a fresh, printed seed for every test of the kernels."""

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
def torch_npu(npu_device: torch.device) -> ModuleType:
    """The package, which only exists with a device."""
    return importlib.import_module("torch_npu")
