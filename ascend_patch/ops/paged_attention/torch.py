"""Paged attention with what PyTorch has on every device: a call of its attention for each request, or for all.

A request whose blocks follow each other, as they do until the cache has been used up once, is read where it lies.
Requests that decode share a call where they are of one length and one block each, without others between them: beams,
or samples of one prompt. What the cache holds behind a shorter request may not even be a number.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ascend_patch.ops.attention import torch as whole
from ascend_patch.ops.paged_attention.reference import store_keys_values

__all__ = ["paged_attention", "store_keys_values"]


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Sequence[int],
    seqlens_k: Sequence[int],
    *,
    scale: float,
    window: tuple[int, int] | None = None,
) -> Tensor:
    """See :func:`ascend_patch.ops.paged_attention.paged_attention`."""
    tables = block_table.tolist()
    if blocks := _blocks_of_one_call(len(query), tables, cu_seqlens_q, seqlens_k, window, key_cache.shape[1]):
        return _one_token_each(query, key_cache, value_cache, blocks, seqlens_k[0], scale)
    output = torch.empty_like(query)
    output[cu_seqlens_q[-1] :] = 0
    for table, (start, end), keys in zip(tables, pairwise(cu_seqlens_q), seqlens_k, strict=False):
        if start == end:
            continue
        first = _first_key(end - start, keys, window)
        key, value = (_rows(cache, table, first, keys) for cache in (key_cache, value_cache))
        rows = query[start:end]
        output[start:end] = (
            _one_token(rows, key, value, scale) if len(rows) == 1 else _several(rows, key, value, scale, window)
        )
    return output


def _first_key(queries: int, keys: int, window: tuple[int, int] | None) -> int:
    """The first key that any of the request's queries sees."""
    if window is None or window[0] < 0:
        return 0
    return max(0, keys - queries - window[0])


def _rows(cache: Tensor, table: Sequence[int], first: int, end: int) -> Tensor:
    """Rows ``first`` to ``end`` of a request, ``[rows, ng, hn]``; a view where its blocks follow each other."""
    block = cache.shape[1]
    used = table[first // block : -(-end // block)]
    rows = slice(first % block, first % block + end - first)
    if all(after == before + 1 for before, after in pairwise(used)):
        return cache[used[0] : used[-1] + 1].flatten(0, 1)[rows]
    return cache[torch.tensor(used, device=cache.device)].flatten(0, 1)[rows]


def _blocks_of_one_call(
    tokens: int,
    tables: Sequence[Sequence[int]],
    cu_seqlens_q: Sequence[int],
    seqlens_k: Sequence[int],
    window: tuple[int, int] | None,
    block: int,
) -> list[int]:
    """The block of each request where all have a token and as many keys, in one block each, side by side; else []."""
    requests, keys = len(seqlens_k), seqlens_k[0]
    one_token_each = tokens == requests and list(cu_seqlens_q) == list(range(requests + 1))
    if not one_token_each or len(set(seqlens_k)) > 1 or keys > block or _first_key(1, keys, window) > 0:
        return []
    blocks = [table[0] for table in tables[:requests]]
    side_by_side = max(blocks) - min(blocks) + 1 == len(set(blocks)) == requests
    return blocks if side_by_side else []


def _one_token_each(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, blocks: Sequence[int], keys: int, scale: float
) -> Tensor:
    """:func:`_one_token` of all requests, in the order of their blocks."""
    order = sorted(range(len(blocks)), key=blocks.__getitem__)
    in_order = order == list(range(len(blocks)))
    first = min(blocks)
    used = (cache[first : first + len(blocks), :keys] for cache in (key_cache, value_cache))
    key, value = (rows.transpose(1, 2) for rows in used)  # [requests, ng, keys, hn]
    by_group = (query if in_order else query[order]).view(len(blocks), key.shape[1], -1, query.shape[2])
    attended = scaled_dot_product_attention(by_group, key, value, scale=scale).view(query.shape)
    if in_order:
        return attended
    output = torch.empty_like(query)
    output[order] = attended
    return output


def _one_token(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """It sees all keys: the query heads that share a key head are the rows of one small matrix."""
    groups = key.shape[1]
    by_group = query.view(1, groups, -1, query.shape[2])  # [1, ng, np / ng, hn]
    key, value = (t.transpose(0, 1).unsqueeze(0) for t in (key, value))
    return scaled_dot_product_attention(by_group, key, value, scale=scale).view(query.shape)


def _several(query: Tensor, key: Tensor, value: Tensor, scale: float, window: tuple[int, int] | None) -> Tensor:
    query_, key, value = (t.unsqueeze(1) for t in (query, key, value))
    attended = whole.attention(query_, key, value, scale=scale, causal=True, window=window)
    return attended.view(query.shape)
