"""Attention in plain PyTorch, scores and all: the oracle for the other variants."""

import torch
from torch import Tensor

from ascend_patch.ops.attention.masks import visible_keys
from ascend_patch.ops.attention.packed import by_sequence
from ascend_patch.ops.numerics import accumulation_dtype


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    causal: bool,
    window: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """See :func:`ascend_patch.ops.attention.attention`."""
    dtype = accumulation_dtype(query.dtype)
    queries_per_group = query.shape[2] // key.shape[2]
    wide_key = key.to(dtype).repeat_interleave(queries_per_group, dim=2)
    wide_value = value.to(dtype).repeat_interleave(queries_per_group, dim=2)
    scores = torch.einsum("qbnh,kbnh->bnqk", query.to(dtype), wide_key) * scale
    visible = visible_keys(query.shape[0], key.shape[0], causal, window, query.device)
    if mask is not None:
        visible = visible & ~mask
    scores = scores.masked_fill(~visible, float("-inf"))
    # A row without visible keys is all -inf; its softmax is undefined, the contract says zero.
    any_visible = visible.any(dim=-1, keepdim=True)
    probs = torch.softmax(scores.masked_fill(~any_visible, 0.0), dim=-1).masked_fill(~any_visible, 0.0)
    probs = torch.nn.functional.dropout(probs, dropout_p)
    return torch.einsum("bnqk,kbnh->qbnh", probs, wide_value).flatten(2).to(query.dtype)


attention_thd = by_sequence(attention)
