"""``p2p``: keys and values go round the ranks while each attends to those it has.

A rank has an early and a late half (:mod:`ascend_patch.context_parallel.layout`). Of another rank's keys causal
attention needs either the early half, for all queries, or both halves, for the late queries: half of the scores
each time. Parts are merged by their log-sum-exp. In the backward pass the gradients of keys and values travel with
them, in float32, one step behind. The next keys and values are on their way while those at hand are used.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.context_parallel.exchange import PassedOn
from ascend_patch.ops.attention import attention, attention_backward, attention_forward
from ascend_patch.ops.numerics import accumulation_dtype


def ring_attention(
    query: Tensor, key: Tensor, value: Tensor, *, group: dist.ProcessGroup, scale: float, causal: bool
) -> Tensor:
    """:func:`ascend_patch.ops.attention.attention` of all ranks' keys to the own queries.

    Args:
        query: ``[s / ranks, b, np, hn]``, key and value: ``[s / ranks, b, ng, hn]``, in the order of ``layout``; the
            length is even.

    Returns:
        ``[s / ranks, b, np * hn]``.
    """
    if group.size() == 1:
        return attention(query, key, value, scale=scale, causal=causal)
    return _RingAttention.apply(query, key, value, group, scale, causal)


class _Step(NamedTuple):
    """Which of the own queries attend to which of the keys at hand."""

    queries: slice
    keys: slice
    causal: bool


def _step(source: int, group: dist.ProcessGroup, length: int, causal: bool) -> _Step:
    """For the keys of rank ``source``."""
    half, everything = length // 2, slice(None)
    if not causal or source == group.rank():
        # Of two halves in their order, causality is that of the whole.
        return _Step(everything, everything, causal)
    if source < group.rank():
        return _Step(everything, slice(half), False)
    return _Step(slice(half, None), everything, False)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, group: dist.ProcessGroup, scale: float, causal: bool
    ) -> Tensor:
        by_head = (query.shape[2], value.shape[3])
        # What is kept for the backward pass is no view of a larger tensor.
        query, key, value = (t.contiguous() for t in (query, key, value))
        at_hand = [key, value]
        for i in range(group.size()):
            last = i + 1 == group.size()
            coming = None if last else PassedOn(at_hand, group)
            step = _step((group.rank() - i) % group.size(), group, query.shape[0], causal)
            keys, values = (t[step.keys] for t in at_hand)
            part, part_lse = attention_forward(query[step.queries], keys, values, scale=scale, causal=step.causal)
            part = part.to(accumulation_dtype(part.dtype)).unflatten(-1, by_head)
            if i == 0:
                output, lse = part, part_lse
            else:
                before = lse[..., step.queries]
                # The part's share of the sum of exponentials, [s, b, np, 1].
                share = torch.sigmoid(part_lse - before).permute(2, 0, 1).unsqueeze(-1)
                output[step.queries].lerp_(part, share)
                before.copy_(torch.logaddexp(before, part_lse))
            del part  # before the next one is made
            if coming is not None:
                at_hand = coming.wait()
        result = output.flatten(2).to(query.dtype)
        ctx.save_for_backward(query, key, value, result, lse)
        ctx.group, ctx.scale, ctx.causal = group, scale, causal
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        group = ctx.group
        dtype = accumulation_dtype(query.dtype)
        at_hand = [key, value]
        grad_query = torch.zeros_like(query, dtype=dtype)
        sums = [torch.zeros_like(t, dtype=dtype) for t in at_hand]
        behind = None
        for i in range(group.size()):
            last = i + 1 == group.size()
            coming = None if last else PassedOn(at_hand, group)
            step = _step((group.rank() - i) % group.size(), group, query.shape[0], ctx.causal)
            keys, values = (t[step.keys] for t in at_hand)
            parts = attention_backward(
                grad_output[step.queries],
                query[step.queries],
                keys,
                values,
                output[step.queries],
                lse[..., step.queries],
                scale=ctx.scale,
                causal=step.causal,
            )
            grad_query[step.queries].add_(parts[0])
            if behind is not None:
                sums = behind.wait()
            for total, part in zip(sums, parts[1:], strict=True):
                total[step.keys].add_(part)
            del parts, part  # before the next ones are made
            behind = None if last else PassedOn(sums, group)
            if coming is not None:
                at_hand = coming.wait()
        # The next rank is the one whose keys these are.
        sums = PassedOn(sums, group).wait()  # before anything else is made
        return grad_query.to(query.dtype), *(total.to(query.dtype) for total in sums), None, None, None
