"""Attention over a part of the keys, a block of queries at a time.

As in :mod:`ascend_patch.ops.attention.blockwise`, but the weights follow from the log-sum-exp of a query's scores, so
that the gradient of a part can be formed from the statistics of the whole.
"""

import torch
from torch import Tensor

from ascend_patch.ops.attention.blockwise import Scores, group_major, query_major, scaled_bmm
from ascend_patch.ops.numerics import accumulation_dtype


@torch.no_grad()
def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`ascend_patch.ops.attention.attention_forward`."""
    scores = Scores(query, key, scale, causal, None, None)
    query_rows, key_rows, value_rows = (group_major(t, scores.groups) for t in (query, key, value))
    dtype = accumulation_dtype(query.dtype)
    lse = torch.empty(query_rows.shape[:2], dtype=dtype, device=query.device)
    output = query.new_empty(scores.sq, scores.batch * scores.groups, scores.repeats * value.shape[3])
    for block in scores.blocks():
        rows = scores.rows(block)
        of_block = scores.of_block(query_rows, key_rows, block).to(dtype)
        lse[:, rows] = torch.logsumexp(of_block, dim=-1)
        weights = of_block.sub_(lse[:, rows].unsqueeze(-1)).exp_().to(value.dtype)
        output[block.first : block.end] = query_major(torch.bmm(weights, value_rows[:, block.keys]), scores.repeats)
    by_head = (scores.batch, scores.groups, scores.sq, scores.repeats)
    lse = lse.view(by_head).transpose(2, 3).reshape(scores.batch, query.shape[2], scores.sq)
    return output.view(scores.sq, scores.batch, query.shape[2] * value.shape[3]), lse


@torch.no_grad()
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
    scores = Scores(query, key, scale, causal, None, None)
    by_head = (query.shape[2], value.shape[3])
    query_rows, key_rows, value_rows, grad_rows, output_rows = (
        group_major(t, scores.groups)
        for t in (query, key, value, grad_output.unflatten(-1, by_head), output.unflatten(-1, by_head))
    )
    dtype = accumulation_dtype(query.dtype)
    delta = (grad_rows.to(dtype) * output_rows).sum(dim=-1, keepdim=True)
    by_group = lse.view(scores.batch, scores.groups, scores.repeats, scores.sq)
    lse_rows = by_group.transpose(2, 3).reshape(*query_rows.shape[:2], 1)
    grad_query = query.new_empty(scores.sq, scores.batch * scores.groups, scores.repeats * query.shape[3])
    # Every block of queries adds to these.
    grad_key_rows = torch.zeros_like(key_rows, dtype=dtype)
    grad_value_rows = torch.zeros_like(value_rows, dtype=dtype)
    for block in scores.blocks():
        rows, keys = scores.rows(block), block.keys
        weights = scores.of_block(query_rows, key_rows, block).to(dtype).sub_(lse_rows[:, rows]).exp_()
        grad_weights = torch.bmm(grad_rows[:, rows], value_rows[:, keys].transpose(1, 2))
        grad_scores = (weights * (grad_weights - delta[:, rows])).to(query.dtype)
        grad_value_rows[:, keys] += torch.bmm(weights.to(query.dtype).transpose(1, 2), grad_rows[:, rows])
        grad_query[block.first : block.end] = query_major(
            scaled_bmm(grad_scores, key_rows[:, keys], scale), scores.repeats
        )
        grad_key_rows[:, keys] += scaled_bmm(grad_scores.transpose(1, 2), query_rows[:, rows], scale)
    by_head = (scores.batch, scores.groups)
    return (
        grad_query.view(query.shape),
        grad_key_rows.to(key.dtype).transpose(0, 1).unflatten(1, by_head),
        grad_value_rows.to(value.dtype).transpose(0, 1).unflatten(1, by_head),
    )
