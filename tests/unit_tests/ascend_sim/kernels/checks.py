"""What tests of the kernels share: comparison with float64, on the CPU and through torch_npu's autograd."""

from collections.abc import Callable, Iterable, Sequence

import pytest
import torch

from ascend_sim.errors import ConstraintError, NotModelled

FLOAT16, BFLOAT16, FLOAT32 = torch.float16, torch.bfloat16, torch.float32
TOLERANCE = {FLOAT32: 2e-5, FLOAT16: 4e-3, BFLOAT16: 3e-2}

Results = torch.Tensor | Sequence[torch.Tensor]


def assert_close(actual: Results, expected: Results, dtype: torch.dtype | None = None) -> None:
    """`actual` has the values of the float64 `expected`, as precisely as `dtype` (else its own) allows."""
    for found, wanted in zip(_several(actual), _several(expected), strict=True):
        assert found.shape == wanted.shape
        tolerance = TOLERANCE[dtype or found.dtype]
        torch.testing.assert_close(found.double().cpu(), wanted.double(), rtol=tolerance, atol=tolerance)


def check_on_device(
    operator: Callable[..., Results],
    formula: Callable[..., Results],
    inputs: Iterable[torch.Tensor],
    device: torch.device,
) -> None:
    """Value and gradients of `operator` on npu tensors are those of `formula` in float64.

    The gradients come from torch_npu's own autograd, as precise as the least precise input or result. Integer and bool
    inputs are passed on without a gradient.
    """
    given = list(inputs)
    exact = [tensor.double().requires_grad_() if tensor.is_floating_point() else tensor for tensor in given]
    leaves = [tensor.to(device).requires_grad_(tensor.is_floating_point()) for tensor in given]
    expected, actual = _several(formula(*exact)), _several(operator(*leaves))
    floating = [tensor.dtype for tensor in (*given, *actual) if tensor.is_floating_point()]
    coarsest = max(floating, key=lambda dtype: TOLERANCE[dtype])
    assert_close(actual, expected)
    weights = [torch.randn_like(value) for value in expected]
    torch.autograd.backward(expected, weights)
    torch.autograd.backward(actual, [w.to(a) for w, a in zip(weights, actual, strict=True)])
    for leaf, wanted, tensor in zip(leaves, exact, given, strict=True):
        if tensor.is_floating_point():
            assert leaf.grad.dtype == tensor.dtype
            scale = max(1.0, float(wanted.grad.abs().max()))
            assert_close(leaf.grad / scale, wanted.grad / scale, coarsest)


def refuses(operator: str, message: str) -> "pytest.RaisesExc":
    """The constraint of `operator` that is broken is named: `message` is a regular expression."""
    return pytest.raises(ConstraintError, match=rf"(?s)^npu::{operator}: .*{message}")


def not_modelled(operator: str, message: str) -> "pytest.RaisesExc":
    """Likewise for what the simulator does not model."""
    return pytest.raises(NotModelled, match=rf"(?s)^npu::{operator}: .*{message}")


def _several(results: Results) -> Sequence[torch.Tensor]:
    return [results] if isinstance(results, torch.Tensor) else results
