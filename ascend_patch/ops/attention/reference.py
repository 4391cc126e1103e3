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
    wide_query, wide_key, wide_value = _widened(query, key, value)
    scores = torch.einsum("qbnh,kbnh->bnqk", wide_query, wide_key) * scale
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


def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`ascend_patch.ops.attention.attention_forward`."""
    with torch.no_grad():
        wide_query, wide_key, wide_value = _widened(query, key, value)
        scores = _visible_scores(wide_query, wide_key, scale, causal)
        output = torch.einsum("bnqk,kbnh->qbnh", torch.softmax(scores, dim=-1), wide_value)
        return output.flatten(2).to(query.dtype), torch.logsumexp(scores, dim=-1)


def attention_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    *,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`ascend_patch.ops.attention.attention_backward`."""
    with torch.no_grad():
        wide_query, wide_key, wide_value = _widened(query, key, value)
        by_head = (query.shape[2], value.shape[3])
        grad, out = (t.to(wide_query.dtype).unflatten(-1, by_head) for t in (grad_output, output))
        probs = torch.exp(_visible_scores(wide_query, wide_key, scale, causal) - lse.unsqueeze(-1))
        grad_probs = torch.einsum("qbnh,kbnh->bnqk", grad, wide_value)
        delta = (grad * out).sum(dim=-1).permute(1, 2, 0).unsqueeze(-1)
        grad_scores = probs * (grad_probs - delta) * scale
        by_group = (key.shape[2], query.shape[2] // key.shape[2])
        grad_query = torch.einsum("bnqk,kbnh->qbnh", grad_scores, wide_key)
        grad_key = torch.einsum("bnqk,qbnh->kbnh", grad_scores, wide_query).unflatten(2, by_group).sum(dim=3)
        grad_value = torch.einsum("bnqk,qbnh->kbnh", probs, grad).unflatten(2, by_group).sum(dim=3)
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype)


def _widened(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the dtype of sums, with a key and a value head for each query head."""
    dtype = accumulation_dtype(query.dtype)
    repeats = query.shape[2] // key.shape[2]
    wide_key, wide_value = (t.to(dtype).repeat_interleave(repeats, dim=2) for t in (key, value))
    return query.to(dtype), wide_key, wide_value


def _visible_scores(query: Tensor, key: Tensor, scale: float, causal: bool) -> Tensor:
    visible = visible_keys(query.shape[0], key.shape[0], causal, None, query.device)
    return (torch.einsum("qbnh,kbnh->bnqk", query, key) * scale).masked_fill(~visible, float("-inf"))
