"""SwiGLU: each variant against float64 and against upstream's formulas."""

import pytest
import torch
from megatron.core.fusions import fused_bias_swiglu

from ascend_patch.ops import blocks
from ascend_patch.ops import swiglu as package
from ascend_patch.ops.swiglu import reference
from ascend_patch.ops.swiglu import torch as fast
from tests.unit_tests.ops.checks import check_against_float64, check_deterministic_backward

VARIANTS = [reference, fast]
SHAPES = [(9, 14), (3, 2, 6), (1, 2), (0, 8), (5, 0), (4,)]


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS_ON_HOST", 40)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_unweighted(variant, dtype, shape):
    check_against_float64(variant.swiglu, reference.swiglu, torch.randn(shape).to(dtype))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probs_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_weighted(variant, dtype, probs_dtype, shape):
    x, probs = torch.randn(shape).to(dtype), torch.rand(shape[:-1]).to(probs_dtype)
    tolerance = 1e-2 if torch.bfloat16 in (dtype, probs_dtype) else 1e-5
    check_against_float64(variant.swiglu, reference.swiglu, x, probs, tolerance=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_gates_stay_finite(variant):
    x = torch.tensor([[-1e4, 2.0], [1e4, 2.0]], requires_grad=True)
    y = variant.swiglu(x)
    y.sum().backward()
    assert y.flatten().tolist() == [0.0, 2e4]
    assert x.grad.tolist() == [[0.0, 0.0], [2.0, 1e4]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_as_upstream(variant, monkeypatch):
    x, probs = torch.randn(7, 10, requires_grad=True), torch.rand(7, requires_grad=True)
    grad_y = torch.randn(7, 5)
    y = variant.swiglu(x, probs)
    # Without upstream's jit_fuser, which would compile the formulas.
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(y, fused_bias_swiglu.weighted_swiglu(x, probs.unsqueeze(-1)))
        grad_x, grad_probs = fused_bias_swiglu.weighted_swiglu_back(grad_y, x, probs.unsqueeze(-1))
    found = torch.autograd.grad(y, (x, probs), grad_y)
    torch.testing.assert_close(found, (grad_x, grad_probs.squeeze(-1)))


def test_non_contiguous_input():
    check_against_float64(fast.swiglu, reference.swiglu, torch.randn(10, 7).t(), torch.rand(14)[::2])


def test_gradcheck():
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    probs = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fast.swiglu, (x, probs))
    assert torch.autograd.gradcheck(fast.swiglu, (x,))


def test_backward_is_deterministic():
    check_deterministic_backward(fast.swiglu, torch.randn(31, 16).bfloat16(), torch.rand(31))


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"must be even .* found \(3, 5\)"):
        package.swiglu(torch.randn(3, 5))
    with pytest.raises(ValueError, match="without its last dimension"):
        package.swiglu(torch.randn(3, 4), torch.rand(3, 1))
