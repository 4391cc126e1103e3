"""Attention of generation: keys and values in a paged cache, requests of any lengths in one batch. No gradients."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ascend_patch.ops.attention import Window
from ascend_patch.ops.registry import run


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Sequence[int],
    seqlens_k: Sequence[int],
    *,
    scale: float,
    window: Window | None = None,
) -> Tensor:
    """Causal attention of each request's newest tokens to all of its tokens.

    Request ``i`` has ``seqlens_k[i]`` tokens, whose keys and values are in the blocks ``block_table[i]`` in this
    order; its queries, rows ``cu_seqlens_q[i]`` to ``cu_seqlens_q[i + 1]``, are the last of them.

    Args:
        query: ``[t, np, hn]``, floating point.
        key_cache, value_cache: ``[blocks, block, ng, hn]``, ``np`` a multiple of ``ng``; query head ``i`` attends
            to key head ``i * ng // np``.
        block_table: integers ``[requests, most blocks of a request]``; what lies beyond a request's tokens is not
            read.
        cu_seqlens_q: ``requests + 1`` ascending numbers from 0. A request may have no queries.
        seqlens_k: ``requests`` numbers, each at least the request's queries. On the host, as all lengths here: each
            is an argument of the kernels that run.
        scale: multiplies the scores, usually ``1 / sqrt(hn)``.
        window: sliding window, ``(left, right)``, on top of causality.

    Returns:
        ``[t, np, hn]`` in the dtype of ``query``; rows beyond the last request are zero.

    Raises:
        ValueError: the shapes do not fit.
    """
    if query.dim() != 3 or key_cache.dim() != 4 or value_cache.shape != key_cache.shape:
        raise ValueError(
            f"paged_attention: query, key_cache and value_cache have shapes {tuple(query.shape)}, "
            f"{tuple(key_cache.shape)}, {tuple(value_cache.shape)}; they must be [tokens, heads, head_dim] and twice "
            "[blocks, block, heads, head_dim]."
        )
    heads, groups = query.shape[1], key_cache.shape[2]
    if query.shape[2] != key_cache.shape[3] or groups == 0 or heads % groups:
        raise ValueError(
            f"paged_attention: {heads} query heads of size {query.shape[2]} and {groups} key heads of size "
            f"{key_cache.shape[3]}; sizes must be equal, and query heads a multiple of key heads."
        )
    requests = len(seqlens_k)
    if len(cu_seqlens_q) != requests + 1 or block_table.dim() != 2 or len(block_table) < requests:
        raise ValueError(
            f"paged_attention: cu_seqlens_q, seqlens_k and block_table are of {len(cu_seqlens_q) - 1}, {requests} and "
            f"{len(block_table)} requests; there must be as many of each."
        )
    for i, ((start, end), keys) in enumerate(zip(pairwise(cu_seqlens_q), seqlens_k, strict=True)):
        if not 0 <= end - start <= keys or keys > block_table.shape[1] * key_cache.shape[1] or end > len(query):
            raise ValueError(
                f"paged_attention: request {i} has queries {start} to {end} of {len(query)} and {keys} keys; it must "
                f"have as many keys as queries, and at most {block_table.shape[1]} blocks of {key_cache.shape[1]}."
            )
    return run(
        "paged_attention",
        "paged_attention",
        query,
        key_cache,
        value_cache,
        block_table,
        cu_seqlens_q,
        seqlens_k,
        scale=scale,
        window=window,
    )


def store_keys_values(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """Write each token's key and value to its place in the cache, in place.

    Args:
        key, value: ``[t, ng, hn]``.
        key_cache, value_cache: ``[blocks, block, ng, hn]``, contiguous.
        slots: integers ``[t]``: block times the block's size, plus the place in the block. Of tokens with the same
            slot any may win.

    Raises:
        ValueError: the shapes do not fit.
    """
    if key.shape != value.shape or key.shape[1:] != key_cache.shape[2:] or len(slots) != len(key):
        raise ValueError(
            f"store_keys_values: key, value, key_cache and slots have shapes {tuple(key.shape)}, {tuple(value.shape)}, "
            f"{tuple(key_cache.shape)} and {tuple(slots.shape)}; they must be twice [tokens, heads, head_dim], "
            "[blocks, block, heads, head_dim] and [tokens]."
        )
    run("paged_attention", "store_keys_values", key, value, key_cache, value_cache, slots)
