"""npu_rotary_mul against float64."""

import pytest
import torch

from ascend_sim.kernels.rotary import npu_rotary_mul, npu_rotary_mul_backward
from tests.unit_tests.ascend_sim.kernels.checks import BFLOAT16, FLOAT32, assert_close, check_on_device, refuses

MODES = pytest.mark.parametrize("mode", ["half", "interleave"])
LAYOUTS = [  # input, factors
    ((2, 3, 5, 8), (1, 1, 5, 8)),  # BNSD
    ((2, 5, 3, 8), (1, 5, 1, 8)),  # BSND
    ((5, 2, 3, 8), (5, 1, 1, 8)),  # SBND
    ((5, 3, 6), (5, 1, 6)),  # TND
]
ONLY_HALF = [((2, 3, 5, 8), (2, 1, 5, 8)), ((2, 5, 3, 8), (2, 5, 1, 8)), ((2, 3, 5, 8), (2, 3, 5, 8)), ((5, 3, 6),) * 2]


def formula(x, cos, sin, mode):
    if mode == "half":
        half = x.shape[-1] // 2
        rotated = torch.cat((-x[..., half:], x[..., :half]), -1)
    else:
        rotated = torch.empty_like(x)
        rotated[..., ::2], rotated[..., 1::2] = -x[..., 1::2], x[..., ::2]
    return x * cos + rotated * sin


def factors(shape, dtype=FLOAT32):
    angle = torch.randn(shape)
    return angle.cos().to(dtype), angle.sin().to(dtype)


@MODES
@pytest.mark.parametrize(("shape", "factor"), LAYOUTS)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_forward_and_backward(mode, shape, factor, dtype):
    x, gradient = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    cos, sin = factors(factor, dtype)
    leaves = [tensor.double().requires_grad_() for tensor in (x, cos, sin)]
    expected = formula(*leaves, mode)
    expected.backward(gradient.double())
    assert_close(npu_rotary_mul(x, cos, sin, mode), expected)
    for grad, leaf in zip(npu_rotary_mul_backward(gradient, x, cos, sin, mode), leaves, strict=True):
        assert grad.dtype == dtype
        assert_close(grad, leaf.grad)


@pytest.mark.parametrize(("shape", "factor"), ONLY_HALF)
def test_factors_of_mode_half(shape, factor):
    x, (cos, sin) = torch.randn(shape), factors(factor)
    assert_close(npu_rotary_mul(x, cos, sin, "half"), formula(x.double(), cos.double(), sin.double(), "half"))
    with refuses("npu_rotary_mul", "r1 has shape"):
        npu_rotary_mul(x, cos, sin, "interleave")


def test_factors_are_rounded_to_the_inputs_type():
    x, (cos, sin) = torch.randn(4, 2, 3, 8).bfloat16(), factors((4, 1, 1, 8))
    rounded = npu_rotary_mul(x, cos.bfloat16(), sin.bfloat16(), "half")
    assert torch.equal(npu_rotary_mul(x, cos, sin, "half"), rounded)


@pytest.mark.simulator
@MODES
def test_gradients_on_device(torch_npu, npu_device, mode):
    check_on_device(
        lambda x, cos, sin: torch_npu.npu_rotary_mul(x, cos, sin, mode),
        lambda x, cos, sin: formula(x, cos, sin, mode),
        [torch.randn(6, 2, 3, 8), *factors((6, 1, 1, 8))],
        npu_device,
    )


def test_constraints():
    x, (cos, sin) = torch.randn(4, 2, 3, 8), factors((4, 1, 1, 8))
    with refuses("npu_rotary_mul", "rotary_mode is 'quarter', allowed: 'half', 'interleave'"):
        npu_rotary_mul(x, cos, sin, "quarter")
    with refuses("npu_rotary_mul", "input is float64"):
        npu_rotary_mul(x.double(), cos, sin, "half")
    with refuses("npu_rotary_mul", "input has 2 dimensions"):
        npu_rotary_mul(x[0, 0], cos, sin, "half")
    with refuses("npu_rotary_mul", "head size is 7, needed: even and less than 896"):
        npu_rotary_mul(x[..., :7], cos[..., :7], sin[..., :7], "half")
    with refuses("npu_rotary_mul", "head size is 896"):
        npu_rotary_mul(torch.randn(1, 1, 1, 896), *factors((1, 1, 1, 896)), "half")
    with refuses("npu_rotary_mul", "r1 has size 4 in its last dimension"):
        npu_rotary_mul(x, cos[..., :4], sin[..., :4], "half")
    with refuses("npu_rotary_mul", r"r2 has shape \(1, 1, 1, 8\), needed: \(4, 1, 1, 8\)"):
        npu_rotary_mul(x, cos, sin[:1], "half")
    with refuses("npu_rotary_mul", r"r1 has shape \(1, 1, 1, 8\)"):
        npu_rotary_mul(x, cos[:1], sin[:1], "half")
    with refuses("npu_rotary_mul", "r1 reaches 2.0, allowed: -1 to 1"):
        npu_rotary_mul(x, torch.full_like(cos, 2.0), sin, "half")
    with refuses("npu_rotary_mul", "1 batches and 1000 heads, allowed in mode half: each less than 1000"):
        npu_rotary_mul(torch.randn(2, 1, 1000, 2), *factors((2, 1, 1, 2)), "half")
    with refuses("npu_rotary_mul", "40 batches and 25 heads, allowed in mode interleave: a product less than 1000"):
        npu_rotary_mul(torch.randn(2, 40, 25, 2), *factors((2, 1, 1, 2)), "interleave")
    with refuses("npu_rotary_mul_backward", r"grad has shape \(4, 2, 3, 4\)"):
        npu_rotary_mul_backward(x[..., :4], x, cos, sin, "half")
