"""Paged attention in plain PyTorch: each request's keys and values gathered, then plain attention."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ascend_patch.ops.attention import reference as plain


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
    output = torch.zeros_like(query)
    for blocks, (start, end), keys in zip(block_table, pairwise(cu_seqlens_q), seqlens_k, strict=False):
        used = blocks[: -(-keys // key_cache.shape[1])].long()
        key, value = (cache[used].flatten(0, 1)[:keys].unsqueeze(1) for cache in (key_cache, value_cache))
        attended = plain.attention(
            query[start:end].unsqueeze(1), key, value, scale=scale, causal=True, window=window
        )  # [queries, 1, np * hn]
        output[start:end] = attended.squeeze(1).unflatten(1, query.shape[1:])
    return output


def store_keys_values(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """See :func:`ascend_patch.ops.paged_attention.store_keys_values`."""
    for cache, rows in ((key_cache, key), (value_cache, value)):
        cache.flatten(0, 1)[slots.long()] = rows
