"""The collective, then the product, or the other way round: the oracle for the other variants."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_gather_linear(
    x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_linear.all_gather_linear`."""
    return _AllGather.apply(x, group) @ _accumulated(weight, weight_gradient).t()


def linear_reduce_scatter(
    x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_linear.linear_reduce_scatter`."""
    return _ReduceScatter.apply(x @ _accumulated(weight, weight_gradient).t(), group)


class _AllGather(torch.autograd.Function):
    """``[T, K]`` of each rank -> ``[P * T, K]``; every rank's gradient counts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _summed(grad_outputs[0], ctx.group), None


class _ReduceScatter(torch.autograd.Function):
    """``[P * T, N]`` of each rank -> this rank's ``[T, N]`` of their sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _gathered(grad_outputs[0], ctx.group), None


class _AddGradientTo(torch.autograd.Function):
    """The tensor itself, whose gradient is added to another instead of flowing on."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None]:
        ctx.gradient.add_(grad_outputs[0])
        return None, None


def _accumulated(weight: Tensor, gradient: Tensor | None) -> Tensor:
    return weight if gradient is None else _AddGradientTo.apply(weight, gradient)


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole = x.new_empty(group.size() * x.shape[0], x.shape[1])
    dist.all_gather_into_tensor(whole, x.contiguous(), group=group)
    return whole


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    part = x.new_empty(x.shape[0] // group.size(), x.shape[1])
    dist.reduce_scatter_tensor(part, x.contiguous(), group=group)
    return part
