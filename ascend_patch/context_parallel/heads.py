"""``a2a``: every rank gets the whole sequence of some of the heads, and gives back its part for all of them.

With fewer key heads than ranks, or a number that they do not divide, ranks share key heads: these are repeated as often
as needed before they are sent.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.context_parallel.exchange import all_to_all
from ascend_patch.context_parallel.layout import Pieces
from ascend_patch.ops.attention import Window, attention, attention_thd


def heads_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    group: dist.ProcessGroup,
    scale: float,
    causal: bool,
    window: Window | None = None,
    cu_seqlens: Sequence[int] | None = None,
    attend: Callable[..., Tensor] | None = None,
) -> Tensor:
    """:func:`ascend_patch.ops.attention.attention` of all ranks' keys to the own queries.

    Args:
        query: ``[s / ranks, b, np, hn]``, ``np`` a multiple of the ranks; key and value: ``[s / ranks, b, ng, hn]``;
            in the order of ``layout``; without ``b`` if packed.
        cu_seqlens: where the packed sequences begin and end, the whole of them.
        attend: called with the whole sequence of some heads, ``scale`` and ``causal`` instead of
            :func:`ascend_patch.ops.attention.attention`, for groups that share longer sequences.

    Returns:
        ``[s / ranks, b, np * hn]``, without ``b`` if packed.

    Raises:
        ValueError: a sequence cannot be cut into pieces of equal length.
    """
    ranks = group.size()
    lengths = [query.shape[0] * ranks] if cu_seqlens is None else [end - start for start, end in pairwise(cu_seqlens)]
    pieces = Pieces.of(lengths, ranks)
    shared = math.lcm(key.shape[-2], ranks) // key.shape[-2]
    query, key, value = (
        pieces.to_sequence(_with_fewer_heads(t, group))
        for t in (query, _repeated(key, shared), _repeated(value, shared))
    )
    if attend is not None:
        output = attend(query, key, value, scale=scale, causal=causal)
    elif cu_seqlens is None:
        output = attention(query, key, value, scale=scale, causal=causal, window=window)
    else:
        ends = torch.tensor(cu_seqlens)
        output = attention_thd(query, key, value, ends, ends, scale=scale, causal=causal, window=window)
    # [ranks, s / ranks, …, np / ranks * hn], and from no name: what is sent is not to outlive the exchange
    by_heads = all_to_all(pieces.to_ranks(output).unflatten(0, (ranks, -1)), group)
    return by_heads.movedim(0, -2).flatten(-2)


def _with_fewer_heads(t: Tensor, group: dist.ProcessGroup) -> Tensor:
    """``[s / ranks, …, heads, hn]`` to ``[s, …, heads / ranks, hn]``, in the order of the ranks."""
    by_rank = t.unflatten(-2, (group.size(), -1)).movedim(-3, 0)
    return all_to_all(by_rank, group).flatten(0, 1)


def _repeated(t: Tensor, times: int) -> Tensor:
    """Each head so many times, next to each other."""
    if times == 1:
        return t
    return t.unsqueeze(-2).expand(*t.shape[:-1], times, t.shape[-1]).flatten(-3, -2)
