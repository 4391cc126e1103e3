"""Grouped GEMM as one PyTorch call a product: forward, input gradient and weight gradient make three.

``torch._grouped_mm`` runs all experts in one kernel where the hardware has one. Elsewhere (it is a loop on the host),
and for what it does not take (float64, rows that are not a multiple of 16 bytes), there is a product for each expert.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.function import apply
from ascend_patch.ops.grouped_gemm import by_expert
from ascend_patch.ops.grouped_gemm.reference import add_weight_gradient

__all__ = ["add_weight_gradient", "grouped_gemm", "grouped_product", "grouped_weight_gradient"]


def grouped_gemm(
    x: Tensor, weight: Tensor, tokens_per_expert: list[int], weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_gemm`."""
    return apply(_GroupedGemm, x, weight, tokens_per_expert, weight_gradient)


def grouped_product(x: Tensor, matrices: Tensor, counts: list[int], out: Tensor) -> None:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_product`. Without a copy where it is not one kernel."""
    offsets = _offsets(x, matrices.shape[1:], counts) if len(counts) > 1 else None
    if offsets is None:
        by_expert.multiply(x, matrices, counts, out)
    else:
        out.copy_(torch._grouped_mm(x, matrices, offsets))


def grouped_weight_gradient(
    x: Tensor, grad_y: Tensor, counts: list[int], weight_gradient: Tensor | None = None
) -> Tensor | None:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_weight_gradient`."""
    offsets = _offsets(x, (x.shape[1], grad_y.shape[1]), counts)
    return _weight_gradient(grad_y, x, counts, offsets, weight_gradient)


class _GroupedGemm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: list[int], weight_gradient: Tensor | None) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        offsets = _offsets(x, weight.shape[1:], counts)
        ctx.save_for_backward(x, weight, offsets)
        ctx.counts, ctx.weight_gradient = counts, weight_gradient
        return _product(x, weight.transpose(1, 2), counts, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, offsets = ctx.saved_tensors
        # Contiguous also because the kernel rejects the expanded gradients of sum() and mean().
        grad_y = grad_y.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _product(grad_y, weight, ctx.counts, offsets)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(grad_y, x, ctx.counts, offsets, ctx.weight_gradient)
        return grad_x, grad_weight, None, None


def _product(x: Tensor, matrices: Tensor, counts: list[int], offsets: Tensor | None) -> Tensor:
    if offsets is not None:
        return torch._grouped_mm(x, matrices, offsets)
    y = x.new_empty(x.shape[0], matrices.shape[2])
    by_expert.multiply(x, matrices, counts, y)
    return y


def _weight_gradient(
    grad_y: Tensor, x: Tensor, counts: list[int], offsets: Tensor | None, accumulated: Tensor | None
) -> Tensor | None:
    if offsets is not None:
        gradient = torch._grouped_mm(grad_y.t(), x, offsets)
    else:
        gradient = by_expert.weight_gradient(grad_y, x, counts)
    if accumulated is None:
        return gradient
    accumulated.add_(gradient)
    return None


def _offsets(x: Tensor, sizes: Sequence[int], counts: list[int]) -> Tensor | None:
    """Where the rows of each expert end, for ``torch._grouped_mm``; None where that would not run.

    torch 2.9 checks the device, the dtype, which is that of both operands, and the ``sizes`` of the matrices.
    """
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or any(size * x.element_size() % 16 for size in sizes):
        return None
    if torch.cuda.get_device_capability(x.device) != (9, 0):
        return None
    return torch.tensor(list(accumulate(counts)), dtype=torch.int32).to(x.device, non_blocking=True)
