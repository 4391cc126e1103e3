"""Grouped GEMM as one PyTorch call a product: forward, input gradient and weight gradient make three.

``torch._grouped_mm`` runs all experts in one kernel where the hardware has one. Elsewhere (it is a loop on the host),
and for what it does not take (float64, rows that are not a multiple of 16 bytes), there is a product for each expert.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.function import apply
from ascend_patch.ops.grouped_gemm import by_expert
from ascend_patch.ops.grouped_gemm.reference import add_weight_gradient

__all__ = ["add_weight_gradient", "grouped_gemm"]


def grouped_gemm(
    x: Tensor, weight: Tensor, tokens_per_expert: list[int], weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_gemm`."""
    return apply(_GroupedGemm, x, weight, tokens_per_expert, weight_gradient)


class _GroupedGemm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: list[int], weight_gradient: Tensor | None) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        offsets = None
        if _kernel_accepts(weight):
            offsets = torch.tensor(list(accumulate(counts)), dtype=torch.int32).to(x.device, non_blocking=True)
        ctx.save_for_backward(x, weight, offsets)
        ctx.counts, ctx.weight_gradient = counts, weight_gradient
        if offsets is not None:
            return torch._grouped_mm(x, weight.transpose(1, 2), offsets)
        return by_expert.multiply(x, weight.transpose(1, 2), counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, offsets = ctx.saved_tensors
        # Contiguous also because the kernel rejects the expanded gradients of sum() and mean().
        grad_y = grad_y.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0] and offsets is not None:
            grad_x = torch._grouped_mm(grad_y, weight, offsets)
        elif ctx.needs_input_grad[0]:
            grad_x = by_expert.multiply(grad_y, weight, ctx.counts)
        if ctx.needs_input_grad[1]:
            if offsets is not None:
                grad_weight = torch._grouped_mm(grad_y.t(), x, offsets)
            else:
                grad_weight = by_expert.weight_gradient(grad_y, x, ctx.counts)
            if ctx.weight_gradient is not None:
                ctx.weight_gradient.add_(grad_weight)
                grad_weight = None
        return grad_x, grad_weight, None, None


def _kernel_accepts(weight: Tensor) -> bool:
    """What ``torch._grouped_mm`` of torch 2.9 checks before it runs; ``x`` has the dtype of ``weight``."""
    if weight.device.type != "cuda" or any(size * weight.element_size() % 16 for size in weight.shape[1:]):
        return False
    return weight.dtype == torch.bfloat16 and torch.cuda.get_device_capability(weight.device) == (9, 0)
