"""torch.compile and torch.jit.script give back what they got."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("cpu_device")


def double(x):
    return x * 2


def test_as_a_function():
    module = torch.nn.Linear(2, 2)
    assert torch.compile(double) is torch.jit.script(double) is double
    assert torch.compile(module, fullgraph=True) is module


def test_as_a_decorator():
    assert torch.compile()(double) is double
    assert torch.compile(mode="max-autotune", dynamic=True)(double) is double
    assert torch.jit.script()(double) is double


def test_a_compiled_module_runs():
    module = torch.nn.Linear(2, 2)
    expected = module(torch.ones(1, 2))
    module.compile()
    assert torch.equal(module(torch.ones(1, 2)), expected)
