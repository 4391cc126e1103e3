"""SwiGLU through ``npu_swiglu`` and ``npu_swiglu_backward``.

One launch forward and one backward; probabilities add a multiplication forward and three launches backward, and round
the result twice instead of once. Their gradient needs no second activation: the gradient of ``up`` before weighting is
``grad_y * silu(gate)``, so that its product with ``up`` sums up to what each probability is to get.
"""

from typing import Any

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.ascend import require_tensors
from ascend_patch.ops.function import apply


def swiglu(x: Tensor, probs: Tensor | None = None) -> Tensor:
    """See :func:`ascend_patch.ops.swiglu.swiglu`."""
    require_tensors("npu_swiglu", x)
    return apply(_SwiGLU, x.contiguous(), probs)


class _SwiGLU(torch.autograd.Function):
    """Over contiguous ``[..., 2F]``. The operators take no empty tensor, which a rank without tokens has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probs: Tensor | None) -> Tensor:
        # In the dtype of the activation: a wider one would widen the whole product.
        weights = None if probs is None else probs.to(x.dtype).unsqueeze(-1)
        ctx.save_for_backward(x, weights)
        ctx.probs_dtype = None if probs is None else probs.dtype
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        y = torch_npu.npu_swiglu(x, dim=-1)
        return y if weights is None else y.mul_(weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weights = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        if x.numel():
            grad_x = torch.ops.npu.npu_swiglu_backward(grad_y.contiguous(), x, dim=-1)
        if weights is None:
            return grad_x, None
        grad_probs = None
        if ctx.needs_input_grad[1]:
            half = x.shape[-1] // 2
            products = grad_x[..., half:] * x[..., half:]
            grad_probs = products.sum(dim=-1, dtype=torch.float32).to(ctx.probs_dtype)
        return grad_x.mul_(weights), grad_probs
