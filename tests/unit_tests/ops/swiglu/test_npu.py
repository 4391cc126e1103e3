"""SwiGLU on the NPU against float64."""

import pytest
import torch

from ascend_patch.ops.registry import Unsupported
from ascend_patch.ops.swiglu import reference
from tests.unit_tests.ops.checks import TOLERANCES, relative_error, results_and_gradients
from tests.unit_tests.ops.npu_checks import check_on_npu

pytestmark = pytest.mark.npu

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


SHAPES = [(3, 28672), (5, 2, 32768), (7, 6), (1, 2), (0, 8)]


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradient(npu, npu_device, dtype, shape):
    check_on_npu(npu.swiglu, reference.swiglu, [torch.randn(shape).to(dtype)], npu_device)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("probs_dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities(npu, npu_device, dtype, probs_dtype, shape):
    """Value and gradient of x as always; the terms of a probability's gradient may cancel, so it is held to them."""
    x, probs = torch.randn(shape).to(dtype), torch.rand(shape[:-1]).to(probs_dtype)
    grad_y = torch.randn(*shape[:-1], shape[-1] // 2).to(dtype)
    on_npu = [x.to(npu_device), probs.to(npu_device)]
    y, (grad_x, grad_probs) = results_and_gradients(npu.swiglu, on_npu, grad_y.to(npu_device))
    wide = [x.double(), probs.double()]
    expected, (expected_x, expected_probs) = results_and_gradients(reference.swiglu, wide, grad_y)
    tolerance = max(TOLERANCES[dtype], TOLERANCES[probs_dtype])
    assert (y.dtype, grad_x.dtype, grad_probs.dtype) == (dtype, dtype, probs_dtype)
    assert relative_error(y.cpu(), expected) <= tolerance
    assert relative_error(grad_x.cpu(), expected_x) <= tolerance
    magnitudes = (reference.swiglu(wide[0]) * grad_y).abs().sum(dim=-1)
    assert ((grad_probs.cpu() - expected_probs).abs() <= tolerance * magnitudes).all()


def test_non_contiguous_input(npu, npu_device):
    check_on_npu(
        lambda x, probs: npu.swiglu(x.t(), probs),
        lambda x, probs: reference.swiglu(x.t(), probs),
        [torch.randn(6, 5), torch.rand(5)],
        npu_device,
    )


def test_an_expanded_gradient(npu, npu_device):
    """`sum()` hands back a gradient without strides; the operator takes contiguous ones."""
    x = torch.randn(3, 4, requires_grad=True)
    on_npu = x.detach().to(npu_device).requires_grad_()
    npu.swiglu(on_npu).sum().backward()
    reference.swiglu(x).sum().backward()
    torch.testing.assert_close(on_npu.grad.cpu(), x.grad)


def test_probabilities_of_zero(npu, npu_device):
    """An expert's padding has probability 0, and its gradient does not divide by it."""
    check_on_npu(npu.swiglu, reference.swiglu, [torch.randn(3, 6), torch.zeros(3)], npu_device)


def test_what_the_operator_does_not_take(npu, npu_device):
    with pytest.raises(Unsupported, match="float64; npu_swiglu takes"):
        npu.swiglu(torch.randn(2, 4, dtype=torch.float64, device=npu_device))
