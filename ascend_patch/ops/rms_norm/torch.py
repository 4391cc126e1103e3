"""RMSNorm with a hand-written backward pass that keeps the input and one number a row."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.blocks import ELEMENTS_ON_HOST, row_blocks
from ascend_patch.ops.function import apply
from ascend_patch.ops.numerics import accumulation_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See :func:`ascend_patch.ops.rms_norm.rms_norm`."""
    if _is_small(x) and x.dtype == weight.dtype and not torch.is_grad_enabled():
        return torch.rms_norm(x, weight.shape, weight, eps)  # the same to the bit, in one call
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    return apply(_RMSNorm, rows, weight, eps).view(x.shape)


def _is_small(x: Tensor) -> bool:
    """A block on the host, such as a step of generation has."""
    return x.device.type == "cpu" and x.numel() <= ELEMENTS_ON_HOST


class _RMSNorm(torch.autograd.Function):
    """Over ``[rows, H]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        dtype = accumulation_dtype(x.dtype)
        wide_weight = weight.to(dtype)
        y = torch.empty_like(x)
        inverse_rms = x.new_empty(x.shape[0], 1, dtype=dtype)
        for block in row_blocks(x):
            wide = x[block].to(dtype)
            inverse_rms[block] = wide.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
            y[block] = (wide * inverse_rms[block]).mul_(wide_weight)
        ctx.save_for_backward(x, weight, inverse_rms)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        wide_weight = weight.to(inverse_rms.dtype)
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(wide_weight)
        for block in row_blocks(x):
            normalised = x[block].to(inverse_rms.dtype) * inverse_rms[block]
            grad = grad_y[block].to(inverse_rms.dtype)
            grad_weight += (grad * normalised).sum(dim=0)
            grad = grad * wide_weight
            projection = (grad * normalised).mean(dim=-1, keepdim=True)
            grad_x[block] = grad.sub_(normalised.mul_(projection)).mul_(inverse_rms[block])
        return grad_x, grad_weight.to(weight.dtype), None
