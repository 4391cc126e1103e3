"""Rotary position embedding through ``npu_rotary_mul``: one launch forward, one backward.

The operator wants cosines and sines instead of angles, in the dtype of what it rotates. They are made once for each
tensor of angles and kept as long as that lives: every layer, and upstream's cache every step, hands over the same one.
The gradient is turned back by the operator itself with the sines negated, so that nothing but these is kept for it;
the operator's own backward pass would hold on to its input.

With a float16 or bfloat16 ``t`` cosine and sine are rounded to that dtype, as by the operator and by upstream's
unfused code. Constraints: torch_npu's documentation of npu_rotary_mul (Ascend/op-plugin, docs/zh/custom_APIs).
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.ascend import require_tensors
from ascend_patch.ops.derived import DerivedValues, host_list
from ascend_patch.ops.function import apply
from ascend_patch.ops.registry import Unsupported
from ascend_patch.ops.rotary.layout import packed_positions

_OPERATOR = "npu_rotary_mul"
_LARGEST_HEAD = 894
_MOST_HEADS = 999
"""Batches and heads each; their product where neighbours are rotated."""


class _Turn(NamedTuple):
    """Cosines, sines and negated sines, ``[s, 1, 1, r]``."""

    cos: Tensor
    sin: Tensor
    negated_sin: Tensor


_turns = DerivedValues()


def apply_rotary(t: Tensor, freqs: Tensor, interleaved: bool = False) -> Tensor:
    """See :func:`ascend_patch.ops.rotary.apply_rotary`."""
    positions = t.shape[0]
    return _apply(t, freqs, interleaved, positions, lambda: freqs[:positions])


def apply_rotary_thd(
    t: Tensor,
    cu_seqlens: Tensor,
    freqs: Tensor,
    cp_size: int = 1,
    cp_rank: int = 0,
    interleaved: bool = False,
) -> Tensor:
    """See :func:`ascend_patch.ops.rotary.apply_rotary_thd`."""
    tokens = t.shape[0]
    offsets = tuple(host_list(cu_seqlens))

    def angles() -> Tensor:
        positions = packed_positions(tokens, torch.tensor(offsets), cp_size, cp_rank, available=freqs.shape[0])
        return freqs[positions.to(freqs.device)]

    return _apply(t.unsqueeze(1), freqs, interleaved, (tokens, offsets, cp_size, cp_rank), angles).squeeze(1)


def _apply(t: Tensor, freqs: Tensor, interleaved: bool, which: Hashable, angles: Callable[[], Tensor]) -> Tensor:
    """Rotate ``t[s, b, h, d]`` by ``angles()``, which ``which`` tells from others made of ``freqs``."""
    require_tensors(_OPERATOR, t)
    _, batch, heads, head_size = t.shape
    if head_size > _LARGEST_HEAD:
        raise Unsupported(f"head size {head_size}; {_OPERATOR} takes up to {_LARGEST_HEAD}")
    if max(batch, heads, batch * heads if interleaved else 0) > _MOST_HEADS:
        raise Unsupported(f"too many batches or heads; {_OPERATOR} takes up to {_MOST_HEADS}")
    rotated = freqs.shape[-1]
    if interleaved and head_size % 2 == 0:
        # Neighbours beyond the rotated features are turned by no angle, which is one launch instead of two.
        rotated = head_size
    turn = _turns.get(freqs, (which, t.dtype, rotated), lambda: _turn(angles(), t.dtype, rotated))
    mode = "interleave" if interleaved else "half"
    if rotated == head_size:
        return apply(_Rotate, t, turn, mode)
    return torch.cat([apply(_Rotate, t[..., :rotated], turn, mode), t[..., rotated:]], dim=-1)


def _turn(angles: Tensor, dtype: torch.dtype, width: int) -> _Turn:
    """Of angles ``[s, 1, 1, r]``, with angles of zero from ``r`` to ``width``."""
    with torch.inference_mode(False), torch.no_grad():  # a later backward pass is to save them
        angles = torch.nn.functional.pad(angles.float(), (0, width - angles.shape[-1]))
        sin = angles.sin().to(dtype)
        return _Turn(angles.cos().to(dtype), sin, -sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, turn: _Turn, mode: str) -> Tensor:
        ctx.turn, ctx.mode = turn, mode
        return torch_npu.npu_rotary_mul(t, turn.cos, turn.sin, mode)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return torch_npu.npu_rotary_mul(grad, ctx.turn.cos, ctx.turn.negated_sin, ctx.mode), None, None
