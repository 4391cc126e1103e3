"""npu_rms_norm and npu_add_rms_norm against float64."""

import pytest
import torch

from ascend_sim.kernels.norm import npu_add_rms_norm, npu_rms_norm, npu_rms_norm_backward
from tests.unit_tests.ascend_sim.kernels.checks import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    assert_close,
    check_on_device,
    refuses,
)


def formula(x, gamma, epsilon=1e-5):
    axes = tuple(range(-gamma.dim(), 0))
    return x / (x.double() ** 2).mean(axes, keepdim=True).add(epsilon).sqrt() * gamma


@pytest.mark.parametrize(("dtype", "gamma_dtype"), [(FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16), (FLOAT16, FLOAT32)])
@pytest.mark.parametrize(
    ("shape", "normalised"), [((3, 1, 7), (7,)), ((5, 4, 6), (4, 6)), ((9,), (9,)), ((0, 4), (4,))]
)
def test_forward(dtype, gamma_dtype, shape, normalised):
    x, gamma = torch.randn(shape).to(dtype), torch.randn(normalised).to(gamma_dtype)
    y, rstd = npu_rms_norm(x, gamma, 1e-5)
    assert y.dtype == dtype
    assert rstd.dtype == FLOAT32
    assert rstd.shape == shape[: len(shape) - len(normalised)] + (1,) * len(normalised)
    assert_close(y, formula(x.double(), gamma.double()))


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_backward(dtype):
    x, gamma, dy = torch.randn(6, 3, 5).to(dtype), torch.randn(3, 5).to(dtype), torch.randn(6, 3, 5).to(dtype)
    leaves = [x.double().requires_grad_(), gamma.double().requires_grad_()]
    formula(*leaves).backward(dy.double())
    grad_x, grad_gamma = npu_rms_norm_backward(dy, x, gamma, npu_rms_norm(x, gamma, 1e-5)[1])
    assert grad_gamma.dtype == FLOAT32
    assert_close(grad_x, leaves[0].grad)
    assert_close(grad_gamma, leaves[1].grad, dtype)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
def test_add(dtype):
    x1, x2, gamma = torch.randn(4, 3, 8).to(dtype), torch.randn(4, 3, 8).to(dtype), torch.randn(8).to(dtype)
    y, rstd, total = npu_add_rms_norm(x1, x2, gamma, 1e-5)
    assert torch.equal(total, x1 + x2)
    exact = x1.double() + x2.double()
    assert_close(y, formula(exact, gamma.double()))
    assert_close(rstd, exact.square().mean(-1, keepdim=True).add(1e-5).rsqrt(), dtype)


@pytest.mark.simulator
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_gradients_on_device(torch_npu, npu_device, dtype):
    check_on_device(
        lambda x, gamma: torch_npu.npu_rms_norm(x, gamma, 1e-5)[0],
        formula,
        [torch.randn(5, 2, 12).to(dtype), torch.randn(12).to(dtype)],
        npu_device,
    )


def test_constraints():
    x = torch.randn(2, 8)
    with refuses("npu_rms_norm", "input is float64, allowed: float16, bfloat16, float32"):
        npu_rms_norm(x.double(), torch.ones(8), 1e-6)
    with refuses("npu_rms_norm", "gamma is bfloat16, allowed: float16, float32"):
        npu_rms_norm(x.half(), torch.ones(8).bfloat16(), 1e-6)
    with refuses("npu_rms_norm", r"gamma has shape \(4,\), needed: trailing dimensions"):
        npu_rms_norm(x, torch.ones(4), 1e-6)
    with refuses("npu_rms_norm", "9 dimensions, allowed: 1 to 8"):
        npu_rms_norm(torch.randn((1,) * 9), torch.ones(1), 1e-6)
    with refuses("npu_rms_norm_backward", "one data type is needed, got dy bfloat16, input float32"):
        npu_rms_norm_backward(x.bfloat16(), x, torch.ones(8), torch.ones(2, 1))
    with refuses("npu_rms_norm_backward", r"dy has shape \(3, 8\), needed: \(2, 8\)"):
        npu_rms_norm_backward(torch.randn(3, 8), x, torch.ones(8), torch.ones(2, 1))
    with refuses("npu_add_rms_norm", "one data type is needed, got x1 bfloat16, x2 bfloat16, gamma float32"):
        npu_add_rms_norm(x.bfloat16(), x.bfloat16(), torch.ones(8), 1e-6)
    with refuses("npu_add_rms_norm", r"x2 has shape \(1, 8\)"):
        npu_add_rms_norm(x, x[:1], torch.ones(8), 1e-6)
    with refuses("npu_add_rms_norm", "takes no empty tensor"):
        npu_add_rms_norm(x[:0], x[:0], torch.ones(8), 1e-6)
