"""npu_swiglu against float64."""

import pytest
import torch

from ascend_sim.kernels.activation import npu_swiglu, npu_swiglu_backward
from tests.unit_tests.ascend_sim.kernels.checks import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    assert_close,
    check_on_device,
    refuses,
)

DTYPES = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
SHAPES = pytest.mark.parametrize(("shape", "dim"), [((3, 10), -1), ((4, 7, 3), 0), ((1, 6, 5), 1), ((2,), 0)])


def formula(x, dim):
    a, b = x.tensor_split(2, dim)
    return a / (1 + torch.exp(-a)) * b


@DTYPES
@SHAPES
def test_forward(dtype, shape, dim):
    x = torch.randn(shape).to(dtype)
    assert_close(npu_swiglu(x, dim), formula(x.double(), dim))


@DTYPES
@SHAPES
def test_backward(dtype, shape, dim):
    x = torch.randn(shape).to(dtype)
    leaf = x.double().requires_grad_()
    value = formula(leaf, dim)
    gradient = torch.randn(value.shape).to(dtype)
    value.backward(gradient.double())
    assert_close(npu_swiglu_backward(gradient, x, dim), leaf.grad)


@pytest.mark.simulator
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_gradients_on_device(torch_npu, npu_device, dtype):
    check_on_device(
        lambda x: torch_npu.npu_swiglu(x, dim=-1),
        lambda x: formula(x, -1),
        [torch.randn(5, 3, 14).to(dtype)],
        npu_device,
    )


def test_constraints():
    with refuses("npu_swiglu", "size 5 along dim -1, an even size"):
        npu_swiglu(torch.randn(2, 5), -1)
    with refuses("npu_swiglu", "input is float64"):
        npu_swiglu(torch.randn(2, 4, dtype=torch.float64), -1)
    with refuses("npu_swiglu", "dim is 2, allowed: -2 to 1"):
        npu_swiglu(torch.randn(2, 4), 2)
    with refuses("npu_swiglu", "a contiguous tensor is needed"):
        npu_swiglu(torch.randn(4, 2).t(), -1)
    with refuses("npu_swiglu", "takes no empty tensor"):
        npu_swiglu(torch.randn(0, 4), -1)
    with refuses("npu_swiglu_backward", r"grad_output has shape \(2, 4\), needed: \(2, 2\)"):
        npu_swiglu_backward(torch.randn(2, 4), torch.randn(2, 4), -1)
    with refuses("npu_swiglu_backward", "one data type is needed"):
        npu_swiglu_backward(torch.randn(2, 2).half(), torch.randn(2, 4), -1)
