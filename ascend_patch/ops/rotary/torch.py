"""Rotary position embedding without concatenations, in float32 on blocks of positions.

A pair ``(x1, x2)`` turns into ``(x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2)``; the gradient turns back, which is the
same computation with other sines. Cosines and sines are made once for a tensor of angles, which all layers hand over,
and are all that is kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.blocks import row_blocks
from ascend_patch.ops.derived import DerivedValues
from ascend_patch.ops.function import apply
from ascend_patch.ops.numerics import accumulation_dtype
from ascend_patch.ops.rotary.layout import packed_positions

_turns = DerivedValues()


def apply_rotary(t: Tensor, freqs: Tensor, interleaved: bool = False) -> Tensor:
    """See :func:`ascend_patch.ops.rotary.apply_rotary`."""
    positions, dtype = t.shape[0], accumulation_dtype(t.dtype)
    cos, sines = _turns.get(
        freqs, (positions, dtype, interleaved), lambda: _cos_and_sines(freqs[:positions].to(dtype), interleaved)
    )
    return apply(_Rotate, t, cos, sines, interleaved)


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
    def forward(ctx: Any, t: Tensor, cos: Tensor, sines: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sines)
        ctx.interleaved = interleaved
        return _turn(t, cos, sines, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sines = ctx.saved_tensors
        return _turn(grad, cos, _swap(sines, ctx.interleaved), ctx.interleaved), None, None, None


def _turn(t: Tensor, cos: Tensor, sines: Tensor, interleaved: bool) -> Tensor:
    """Each feature of a pair times ``cos`` plus the other one times ``sines``."""
    r = cos.shape[-1]
    result = torch.empty_like(t, memory_format=torch.contiguous_format)
    for block in row_blocks(t):
        wide = t[block][..., :r].to(cos.dtype)
        result[block][..., :r] = (wide * cos[block]).addcmul_(_swap(wide, interleaved), sines[block])
        if r < t.shape[-1]:
            result[block][..., r:] = t[block][..., r:]
    return result


def _cos_and_sines(angles: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """What a feature of a pair is multiplied with, and what the other one is before they are added."""
    with torch.inference_mode(False), torch.no_grad():  # a later backward pass is to save them
        first, second = _features(angles.sin(), interleaved)
        return angles.cos(), _pairs(-first, second, interleaved)


def _swap(t: Tensor, interleaved: bool) -> Tensor:
    first, second = _features(t, interleaved)
    return _pairs(second, first, interleaved)


def _features(t: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """The first and the second features of the pairs in the last dimension."""
    if interleaved:
        return t[..., 0::2], t[..., 1::2]
    first, second = t.chunk(2, dim=-1)
    return first, second


def _pairs(first: Tensor, second: Tensor, interleaved: bool) -> Tensor:
    return torch.stack((first, second), dim=-1).flatten(-2) if interleaved else torch.cat((first, second), dim=-1)
