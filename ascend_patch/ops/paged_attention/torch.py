"""Paged attention with what PyTorch has on every device: a call of its attention for each request, or for all.

A request whose blocks follow each other, as they do until the cache has been used up once, is read where it lies.
Prompts of one length share a call. Requests that decode do where they are of one length and one block each, without
others between them: beams, or samples of one prompt. What the cache holds behind a shorter request may not even be a
number.
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
    if _are_alike(len(query), cu_seqlens_q, seqlens_k):
        queries, keys, tables = cu_seqlens_q[1], seqlens_k[0], tables[: len(seqlens_k)]
        first = _first_key(queries, keys, window)
        if queries > 1:
            key, value = ([_rows(cache, table, first, keys) for table in tables] for cache in (key_cache, value_cache))
            return _several(query, key, value, scale, window)
        if first == 0 and _are_side_by_side(tables, keys, key_cache.shape[1]):
            return _one_token_each(query, key_cache, value_cache, [table[0] for table in tables], keys, scale)
    output = torch.empty_like(query)
    output[cu_seqlens_q[-1] :] = 0
    for table, (start, end), keys in zip(tables, pairwise(cu_seqlens_q), seqlens_k, strict=False):
        if start == end:
            continue
        first = _first_key(end - start, keys, window)
        one_key, one_value = (_rows(cache, table, first, keys) for cache in (key_cache, value_cache))
        rows = query[start:end]
        output[start:end] = (
            _one_token(rows, one_key, one_value, scale)
            if len(rows) == 1
            else _several(rows, [one_key], [one_value], scale, window)
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


def _are_alike(tokens: int, cu_seqlens_q: Sequence[int], seqlens_k: Sequence[int]) -> bool:
    """Whether all requests have as many queries, one or more, and as many keys; ``tokens`` are all queries."""
    if len(set(seqlens_k)) != 1 or cu_seqlens_q[1] == 0:
        return False
    return list(cu_seqlens_q) == list(range(0, tokens + 1, cu_seqlens_q[1]))


def _are_side_by_side(tables: Sequence[Sequence[int]], keys: int, block: int) -> bool:
    """Whether each request has one block, and there are no others between these."""
    blocks = {table[0] for table in tables}
    return keys <= block and max(blocks) - min(blocks) + 1 == len(blocks) == len(tables)


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


def _several(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
    window: tuple[int, int] | None,
) -> Tensor:
    """Requests that are alike, whose queries follow each other; ``keys`` and ``values`` are of one request each."""
    by_request = query.unflatten(0, (len(keys), -1)).transpose(0, 1)  # [sq, requests, np, hn]
    key, value = torch.stack(list(keys), dim=1), torch.stack(list(values), dim=1)
    attended = whole.attention(by_request, key, value, scale=scale, causal=True, window=window)
    return attended.transpose(0, 1).reshape(query.shape)
