"""RMSNorm: each variant against float64 and against torch's own."""

from functools import partial

import pytest
import torch

from ascend_patch.ops import blocks
from ascend_patch.ops import rms_norm as package
from ascend_patch.ops.rms_norm import reference
from ascend_patch.ops.rms_norm import torch as fast
from tests.unit_tests.ops.checks import check_against_float64, check_deterministic_backward

VARIANTS = [reference, fast]
SHAPES = [(9, 7), (3, 2, 5), (1, 3), (0, 4), (6,)]


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS_ON_HOST", 20)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_gradients(variant, dtype, weight_dtype, shape):
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(weight_dtype)
    tolerance = 1e-2 if torch.bfloat16 in (dtype, weight_dtype) else 1e-5
    check_against_float64(
        partial(variant.rms_norm, eps=1e-5), partial(reference.rms_norm, eps=1e-5), x, weight, tolerance=tolerance
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_as_torch(variant):
    x, weight = torch.randn(5, 8), torch.randn(8)
    expected = torch.nn.functional.rms_norm(x, (8,), weight, 1e-6)
    torch.testing.assert_close(variant.rms_norm(x, weight, 1e-6), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_of_zeros(variant):
    """eps alone keeps the value and the gradient finite."""
    x = torch.zeros(1, 4, requires_grad=True)
    variant.rms_norm(x, torch.ones(4), 1e-4).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((1, 4), 100.0))


def test_bfloat16_is_rounded_once():
    """The result is the bfloat16 nearest to the exact one."""
    x, weight = torch.randn(50, 64).bfloat16(), torch.randn(64).bfloat16()
    exact = reference.rms_norm(x.double(), weight.double(), 1e-5)
    deviation = (fast.rms_norm(x, weight, 1e-5).double() - exact).abs()
    assert (deviation <= exact.abs() * 2**-8).all()


def test_non_contiguous_input():
    norm = partial(fast.rms_norm, eps=1e-5)
    check_against_float64(
        norm, partial(reference.rms_norm, eps=1e-5), torch.randn(4, 6, 5).transpose(0, 2), torch.ones(4)
    )


def test_gradcheck():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partial(fast.rms_norm, eps=1e-3), (x, weight))


def test_backward_is_deterministic():
    check_deterministic_backward(partial(fast.rms_norm, eps=1e-5), torch.randn(31, 16), torch.randn(16))


@pytest.mark.parametrize("weight_shape", [(5,), (4, 1), ()])
def test_bad_weight(weight_shape):
    with pytest.raises(ValueError, match="as long as the last dimension of x"):
        package.rms_norm(torch.randn(3, 4), torch.ones(weight_shape), 1e-5)
