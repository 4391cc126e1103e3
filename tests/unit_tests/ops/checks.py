"""How the tests compare a variant with the reference: in float64, forward and backward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest deviation allowed, relative to the largest entry, unless the operator's contract says otherwise."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute deviation, relative to the largest entry of ``expected``."""
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    if expected.numel() == 0:
        return 0.0
    expected = expected.double()
    largest = expected.abs().max().item()
    deviation = (found.double() - expected).abs().max().item()
    return deviation / largest if largest > 0.0 else deviation


def results_and_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """``function(*inputs)`` and the gradients of the floating point inputs."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    output = function(*leaves)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(output, wanted, grad_output.to(output.dtype))
    return output.detach(), list(gradients)


def check_against_float64(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    *inputs: Tensor,
    tolerance: float | None = None,
) -> None:
    """``function`` and its gradients agree with ``reference`` on the same values in float64."""
    if tolerance is None:
        tolerance = TOLERANCES[inputs[0].dtype]
    wide_inputs = [t.double() if t.is_floating_point() else t for t in inputs]
    grad_output = torch.randn(reference(*wide_inputs).shape).to(function(*inputs).dtype)
    output, gradients = results_and_gradients(function, inputs, grad_output)
    expected_output, expected_gradients = results_and_gradients(reference, wide_inputs, grad_output)
    assert relative_error(output, expected_output) <= tolerance
    differentiable = [t for t in inputs if t.is_floating_point()]
    for t, gradient, expected in zip(differentiable, gradients, expected_gradients, strict=True):
        assert gradient.dtype == t.dtype
        assert relative_error(gradient, expected) <= tolerance


def check_deterministic_backward(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Two runs give the same bits."""
    grad_output = torch.randn_like(function(*inputs))
    first = results_and_gradients(function, inputs, grad_output)
    second = results_and_gradients(function, inputs, grad_output)
    for a, b in zip([first[0], *first[1]], [second[0], *second[1]], strict=True):
        assert torch.equal(a, b)


class LargestTensor(TorchDispatchMode):
    """Watches what every operator returns, forward and backward.

    Attributes:
        numel: elements of the largest tensor that has memory of its own or is a view of one; 0 before the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        found = (t.untyped_storage().nbytes() // t.element_size() for t in tree_leaves(result) if isinstance(t, Tensor))
        self.numel = max(self.numel, *found, 0)
        return result
