"""Forward and backward of both layers, from the two products that a variant overlaps with communication.

The weight gradient needs the rows of every expert in one place, where either pass has them: nothing is sent twice. In
the backward pass of the first layer it is computed while the gradients of the rows are on their way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.grouped_gemm import grouped_weight_gradient
from ascend_patch.ops.parallel_grouped_gemm.exchange import Exchange


@dataclass(frozen=True)
class Products:
    """What a variant provides.

    Attributes:
        exchange_matmul: ``(a [S, K] by rank, b [E, K, N], exchange)`` -> ``a[e] @ b[e]`` of what has arrived
            ``[R, N]``, and what has arrived ``[R, K]``, both by expert.
        matmul_exchange: ``(a [R, K] by expert, b [E, K, N], exchange)`` -> a function that waits for ``a[e] @ b[e]``
            of every rank ``[S, N]`` by rank, and returns it.
    """

    exchange_matmul: Callable[[Tensor, Tensor, Exchange], tuple[Tensor, Tensor]]
    matmul_exchange: Callable[[Tensor, Tensor, Exchange], Callable[[], Tensor]]


class AllToAllGroupedGemm(torch.autograd.Function):
    """Rows to their experts, then ``x[e] @ weight[e].T``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None, products: Products
    ) -> Tensor:
        y, arrived = products.exchange_matmul(x.contiguous(), weight.transpose(1, 2), exchange)
        ctx.save_for_backward(arrived, weight)
        ctx.exchange, ctx.weight_gradient, ctx.products = exchange, weight_gradient, products
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        arrived, weight = ctx.saved_tensors
        grad_y = grad_y.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.products.matmul_exchange(grad_y, weight, ctx.exchange)
        if ctx.needs_input_grad[1]:
            grad_weight = grouped_weight_gradient(arrived, grad_y, ctx.exchange.rows_per_expert, ctx.weight_gradient)
        return grad_x and grad_x(), grad_weight, None, None, None


class GroupedGemmAllToAll(torch.autograd.Function):
    """``x[e] @ weight[e].T``, then the rows back to where they came from."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None, products: Products
    ) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.exchange, ctx.weight_gradient, ctx.products = exchange, weight_gradient, products
        return products.matmul_exchange(x, weight.transpose(1, 2), exchange)()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        grad_x, arrived = ctx.products.exchange_matmul(grad_y.contiguous(), weight, ctx.exchange)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = grouped_weight_gradient(x, arrived, ctx.exchange.rows_per_expert, ctx.weight_gradient)
        return grad_x, grad_weight, None, None, None
