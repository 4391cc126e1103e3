"""Grouped GEMM as one matrix multiplication per expert: the oracle for the other variants."""

from typing import Any

import torch
from torch import Tensor


def grouped_gemm(
    x: Tensor, weight: Tensor, tokens_per_expert: list[int], weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_gemm`."""
    if weight_gradient is not None:
        weight = _AddGradientTo.apply(weight, weight_gradient)
    parts = [part @ w.t() for part, w in zip(x.split(tokens_per_expert), weight, strict=True)]
    return torch.cat(parts)


def grouped_product(x: Tensor, matrices: Tensor, counts: list[int], out: Tensor) -> None:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_product`."""
    torch.cat([part @ matrix for part, matrix in zip(x.split(counts), matrices, strict=True)], out=out)


def grouped_weight_gradient(
    x: Tensor, grad_y: Tensor, counts: list[int], weight_gradient: Tensor | None = None
) -> Tensor | None:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_weight_gradient`."""
    parts = zip(x.split(counts), grad_y.split(counts), strict=True)
    gradient = torch.stack([grad_part.t() @ part for part, grad_part in parts])
    if weight_gradient is None:
        return gradient
    weight_gradient.add_(gradient)
    return None


def add_weight_gradient(x: Tensor, grad_y: Tensor, weight_gradient: Tensor) -> None:
    """See :func:`ascend_patch.ops.grouped_gemm.add_weight_gradient`."""
    weight_gradient.add_(grad_y.t().mm(x))


class _AddGradientTo(torch.autograd.Function):
    """The tensor itself, whose gradient is added to another instead of flowing on."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad_weight: Tensor) -> tuple[None, None]:
        ctx.gradient.add_(grad_weight)
        return None, None
