"""Rotary position embedding in plain PyTorch: the oracle for the other variants."""

import torch
from torch import Tensor

from ascend_patch.ops.numerics import accumulation_dtype
from ascend_patch.ops.rotary.layout import packed_positions


def apply_rotary(t: Tensor, freqs: Tensor, interleaved: bool = False) -> Tensor:
    """See :func:`ascend_patch.ops.rotary.apply_rotary`."""
    dtype = accumulation_dtype(t.dtype)
    angles = freqs[: t.shape[0]].detach().to(dtype)
    rotated, passed = t.to(dtype).split([freqs.shape[-1], t.shape[-1] - freqs.shape[-1]], dim=-1)
    rotated = rotated * angles.cos() + _rotate_half(rotated, interleaved) * angles.sin()
    return torch.cat([rotated, passed], dim=-1).to(t.dtype)


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


def _rotate_half(x: Tensor, interleaved: bool) -> Tensor:
    """Each pair (a, b) becomes (-b, a)."""
    if interleaved:
        return torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
