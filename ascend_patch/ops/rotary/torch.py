"""Rotary position embedding without concatenations, in float32 on blocks of positions.

A pair ``(x1, x2)`` turns into ``(x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2)``; the gradient turns back, which is the
same computation with other sines. Kept for the backward pass are cosines and sines only.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.blocks import row_blocks
from ascend_patch.ops.function import apply
from ascend_patch.ops.numerics import accumulation_dtype
from ascend_patch.ops.rotary.layout import packed_positions


def apply_rotary(t: Tensor, freqs: Tensor, interleaved: bool = False) -> Tensor:
    """See :func:`ascend_patch.ops.rotary.apply_rotary`."""
    angles = freqs[: t.shape[0]].detach().to(accumulation_dtype(t.dtype))
    return apply(_Rotate, t, angles.cos(), angles.sin(), interleaved)


def apply_rotary_thd(
    t: Tensor,
    cu_seqlens: Tensor,
    freqs: Tensor,
    cp_size: int = 1,
    cp_rank: int = 0,
    interleaved: bool = False,
) -> Tensor:
    """See :func:`ascend_patch.ops.rotary.apply_rotary_thd`."""
    positions = packed_positions(t.shape[0], cu_seqlens, cp_size, cp_rank, available=freqs.shape[0])
    return apply_rotary(t.unsqueeze(1), freqs[positions.to(freqs.device)], interleaved).squeeze(1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        (first, second) = _pairs(cos.shape[-1], interleaved)
        return _turn(t, cos, -sin[..., first], sin[..., second], interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        (first, second) = _pairs(cos.shape[-1], ctx.interleaved)
        return _turn(grad, cos, sin[..., second], -sin[..., first], ctx.interleaved), None, None, None


def _turn(t: Tensor, cos: Tensor, into_first: Tensor, into_second: Tensor, interleaved: bool) -> Tensor:
    """First features times ``cos`` plus second ones times ``into_first``, and the other way round."""
    r = cos.shape[-1]
    first, second = _pairs(r, interleaved)
    result = torch.empty_like(t, memory_format=torch.contiguous_format)
    for block in row_blocks(t):
        wide = t[block].to(cos.dtype)
        x1, x2 = wide[..., first], wide[..., second]
        result[block, ..., first] = (x1 * cos[block][..., first]).addcmul_(x2, into_first[block])
        result[block, ..., second] = (x2 * cos[block][..., second]).addcmul_(x1, into_second[block])
        if r < t.shape[-1]:
            result[block, ..., r:] = t[block, ..., r:]
    return result


def _pairs(r: int, interleaved: bool) -> tuple[slice, slice]:
    """Where the first and the second features of the rotated pairs are."""
    return (slice(0, r, 2), slice(1, r, 2)) if interleaved else (slice(0, r // 2), slice(r // 2, r))
