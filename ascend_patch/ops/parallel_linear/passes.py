"""Forward and backward of both layers, from the two products that a variant overlaps with communication.

Where the backward pass of a column parallel layer has a weight gradient, nothing needs to be cut in pieces: the rows
are gathered while the gradient of the input is computed, and that is scattered during the weight gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.grouped_gemm import add_weight_gradient


@dataclass(frozen=True)
class Products:
    """What a variant provides.

    Attributes:
        gather_matmul: ``(a [T, K], b [K, N], group, keep)`` -> ``all_gather(a) @ b [P * T, N]``, and
            ``all_gather(a) [P * T, K]`` if ``keep``.
        matmul_scatter: ``(a [P * T, K], b [K, N], group)`` -> ``reduce_scatter(a @ b) [T, N]``.
    """

    gather_matmul: Callable[[Tensor, Tensor, dist.ProcessGroup, bool], tuple[Tensor, Tensor | None]]
    matmul_scatter: Callable[[Tensor, Tensor, dist.ProcessGroup], Tensor]


def all_gather(a: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Any]:
    """``[T, K]`` -> ``[P * T, K]``, in place once the handle, which comes second, has been waited for."""
    gathered = a.new_empty(group.size() * a.shape[0], *a.shape[1:])
    return gathered, dist.all_gather_into_tensor(gathered, a, group=group, async_op=True)


def reduce_scatter(a: Tensor, group: dist.ProcessGroup, out: Tensor | None = None) -> tuple[Tensor, Any]:
    """``[P * T, N]`` -> ``[T, N]``, in place once the handle, which comes second, has been waited for."""
    if out is None:
        out = a.new_empty(a.shape[0] // group.size(), *a.shape[1:])
    return out, dist.reduce_scatter_tensor(out, a, group=group, async_op=True)


class AllGatherLinear(torch.autograd.Function):
    """``all_gather(x) @ weight.T``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        group: dist.ProcessGroup,
        weight_gradient: Tensor | None,
        products: Products,
    ) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.weight_gradient, ctx.products = group, weight_gradient, products
        return products.gather_matmul(x, weight.t(), group, False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        grad_y = grad_y.contiguous()
        if not ctx.needs_input_grad[1]:
            return ctx.products.matmul_scatter(grad_y, weight, ctx.group), None, None, None, None
        whole, gathering = all_gather(x, ctx.group)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_whole = torch.mm(grad_y, weight)
            gathering.wait()
            grad_x, scattering = reduce_scatter(grad_whole, ctx.group)
            grad_weight = _weight_gradient(whole, grad_y, ctx.weight_gradient)
            scattering.wait()
        else:
            gathering.wait()
            grad_weight = _weight_gradient(whole, grad_y, ctx.weight_gradient)
        return grad_x, grad_weight, None, None, None


class LinearReduceScatter(torch.autograd.Function):
    """``reduce_scatter(x @ weight.T)``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        group: dist.ProcessGroup,
        weight_gradient: Tensor | None,
        products: Products,
    ) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.weight_gradient, ctx.products = group, weight_gradient, products
        return products.matmul_scatter(x, weight.t(), group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1]
        grad_x, whole = ctx.products.gather_matmul(grad_y.contiguous(), weight, ctx.group, wanted)
        grad_weight = _weight_gradient(x, whole, ctx.weight_gradient) if wanted else None
        return grad_x, grad_weight, None, None, None


def _weight_gradient(x: Tensor, grad_y: Tensor, accumulated: Tensor | None) -> Tensor | None:
    """``grad_y.T @ x``; None if it went into ``accumulated``."""
    if accumulated is None:
        return grad_y.t().mm(x)
    add_weight_gradient(x, grad_y, accumulated)
    return None
