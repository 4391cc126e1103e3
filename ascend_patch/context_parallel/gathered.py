"""``allgather``: every rank gathers all keys and values, and computes its own queries.

A piece of queries then attends to the keys up to its own end, which is plain attention whose positions are aligned at
the end: windows and packed sequences come with it. Memory for keys and values is that of the whole sequence.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.context_parallel.exchange import all_gather
from ascend_patch.context_parallel.layout import Pieces, piece_length
from ascend_patch.ops.attention import Window, attention, attention_thd


def gathered_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    group: dist.ProcessGroup,
    scale: float,
    causal: bool,
    window: Window | None = None,
    cu_seqlens: Sequence[int] | None = None,
) -> Tensor:
    """:func:`ascend_patch.ops.attention.attention` of all ranks' keys to the own queries.

    Args:
        query: ``[s / ranks, b, np, hn]``, key and value: ``[s / ranks, b, ng, hn]``, in the order of ``layout``;
            without ``b`` if packed.
        window: causal attention only.
        cu_seqlens: where the packed sequences begin and end, the whole of them.

    Returns:
        ``[s / ranks, b, np * hn]``, without ``b`` if packed.

    Raises:
        ValueError: a sequence cannot be cut into pieces of equal length.
    """
    ranks, rank = group.size(), group.rank()
    lengths = [query.shape[0] * ranks] if cu_seqlens is None else [end - start for start, end in pairwise(cu_seqlens)]
    pieces = Pieces.of(lengths, ranks)
    key, value = (pieces.to_sequence(all_gather(t, group)) for t in (key, value))
    if not causal and cu_seqlens is None:
        return attention(query, key, value, scale=scale, causal=False)
    sizes = [piece_length(length, ranks) for length in lengths]
    own = query.split([size for size in sizes for _ in range(2)])
    outputs = []
    for half, piece in enumerate((rank, 2 * ranks - 1 - rank)):
        seen = [size * (piece + 1) if causal else size * 2 * ranks for size in sizes]
        if cu_seqlens is None:
            keys, values = key[: seen[0]], value[: seen[0]]
            outputs.append([attention(own[half], keys, values, scale=scale, causal=True, window=window)])
            continue
        keys, values = (
            torch.cat([t[start : start + length] for start, length in zip(cu_seqlens, seen, strict=False)])
            for t in (key, value)
        )
        output = attention_thd(
            torch.cat(own[half::2]),
            keys,
            values,
            torch.tensor([0, *sizes]).cumsum(0),
            torch.tensor([0, *seen]).cumsum(0),
            scale=scale,
            causal=causal,
            window=window,
        )
        outputs.append(output.split(sizes))
    return torch.cat([half for halves in zip(*outputs, strict=True) for half in halves])
