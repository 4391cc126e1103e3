"""Weight gradients that the backward pass adds to DistributedDataParallel's buffer (gradient_accumulation_fusion)."""

from typing import Any

import torch


def with_main_grad(weight: torch.Tensor, accumulates: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight to compute with, and where its gradient is to be added: None leaves it to autograd.

    Args:
        weight: the parameter.
        accumulates: ``gradient_accumulation_fusion`` of the layer.
    """
    if not accumulates or not weight.requires_grad or not hasattr(weight, "grad_added_to_main_grad"):
        return weight, None
    main_grad = getattr(weight, "main_grad", None)
    return (weight if main_grad is None else _GradientInMainGrad.apply(weight)), main_grad


class _GradientInMainGrad(torch.autograd.Function):
    """The weight itself. Its gradient is in ``main_grad`` when backward gets here; DistributedDataParallel is told so.

    The gradient that flows on is in general memory without meaning, as in upstream's
    ``LinearWithGradAccumulationAndAsyncCommunication``: the hooks that reduce gradients want one, and drop it.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *_: None) -> torch.Tensor:
        (weight,) = ctx.saved_tensors
        weight.grad_added_to_main_grad = True
        # Upstream's mark of a weight that has gradients of another layer too, an embedding's, which are added to this.
        zeros = getattr(weight, "zero_out_wgrad", False)
        return torch.zeros_like(weight) if zeros else torch.empty_like(weight)
