"""How the tests of the Ascend variants compare: on the NPU, real or simulated, against the reference in float64."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.unit_tests.ops.checks import TOLERANCES, relative_error, results_and_gradients


def check_on_npu(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    device: torch.device,
    tolerance: float | None = None,
) -> None:
    """``function`` of ``inputs`` moved to ``device``, and its gradients, agree with ``reference`` in float64.

    The reference runs on the CPU. Gradients are compared of the floating point inputs, and must have their dtypes.
    """
    if tolerance is None:
        tolerance = max(TOLERANCES[t.dtype] for t in inputs if t.is_floating_point())
    wide_inputs = [t.double() if t.is_floating_point() else t for t in inputs]
    grad_output = torch.randn(reference(*wide_inputs).shape).to(inputs[0].dtype)
    on_device = [t.to(device) for t in inputs]
    output, gradients = results_and_gradients(function, on_device, grad_output.to(device))
    expected_output, expected_gradients = results_and_gradients(reference, wide_inputs, grad_output)
    assert output.device == device
    assert relative_error(output.cpu(), expected_output) <= tolerance
    differentiable = [t for t in inputs if t.is_floating_point()]
    for t, gradient, expected in zip(differentiable, gradients, expected_gradients, strict=True):
        assert gradient.dtype == t.dtype
        assert relative_error(gradient.cpu(), expected) <= tolerance
