"""Attention over a paged cache: npu_fused_infer_attention_score with a block table, npu_scatter_pa_kv_cache."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch

from ascend_sim.errors import NotModelled, require
from ascend_sim.kernels.attention_core import Attention
from ascend_sim.kernels.attention_mask import MaskArguments
from ascend_sim.kernels.checks import require_dim, require_dtype, require_same_dtype, require_shape
from ascend_sim.kernels.registry import kernel

_OP_PLUGIN = "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu/torch_npu-"
_HALF = (torch.float16, torch.bfloat16)


def tensors_read(arguments: dict[str, Any]) -> Iterable[Any]:
    """Queries, block table, and of the caches the blocks that belong to a request."""
    cache = arguments["key"]
    used = sum(-(-keys // cache.shape[1]) for keys in arguments["actual_seq_lengths_kv"] or ())
    return (arguments["query"], cache[:used], arguments["value"][:used], arguments["block_table"])


@kernel(
    "npu_fused_infer_attention_score",
    source=f"{_OP_PLUGIN}npu_fused_infer_attention_score.md",
    assumes=(
        "Of the layouts only TND with a block table is modelled, with actual_seq_lengths as running totals and "
        "actual_seq_lengths_kv as the length of each request.",
        "Each request has a query; head sizes are 64 and 128, blocks are multiples of 128 up to 512.",
        "Scores and sums are kept in float32; only the result is rounded.",
    ),
    reads=tensors_read,
)
def npu_fused_infer_attention_score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    atten_mask: torch.Tensor | None,
    actual_seq_lengths: list[int] | None,
    actual_seq_lengths_kv: list[int] | None,
    block_table: torch.Tensor | None,
    num_heads: int,
    scale: float,
    pre_tokens: int,
    next_tokens: int,
    input_layout: str,
    num_key_value_heads: int,
    sparse_mode: int,
    inner_precise: int,
    block_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``softmax(mask(scale * query @ key.T)) @ value`` for each request, keys and values through its block table.

    Args:
        query: ``[T, heads, size]``, float16 or bfloat16: the requests' queries behind each other.
        key: ``[blocks, block_size, groups * size]``.
        value: As `key`.
        atten_mask: The 2048 x 2048 upper triangle of sparse modes 3 and 4.
        actual_seq_lengths: Running totals of the requests' queries.
        actual_seq_lengths_kv: Each request's keys.
        block_table: int32 ``[requests, blocks]``.
        num_heads: Heads of the query.
        scale: Multiplies the scores.
        pre_tokens: Width of the band to the left (mode 4).
        next_tokens: Width of the band to the right (mode 4).
        input_layout: Only TND.
        num_key_value_heads: Heads of the cache; 0: as `num_heads`.
        sparse_mode: 3 causal from the lower right, 4 band.
        inner_precise: 0 or 1.
        block_size: Of the cache.

    Returns:
        Output ``[T, heads, size]``, and an empty tensor (the log-sum-exp, which was not asked for).
    """
    if input_layout != "TND" or block_table is None:
        raise NotModelled(f"input_layout {input_layout} without a block table is not modelled")
    groups = num_key_value_heads or num_heads
    _check_cache(query, key, value, num_heads, groups, block_size)
    require(bool(actual_seq_lengths) and bool(actual_seq_lengths_kv), "TND needs actual_seq_lengths and …_kv")
    ends, keys = list(actual_seq_lengths or ()), list(actual_seq_lengths_kv or ())
    queries = [end - start for start, end in pairwise([0, *ends])]
    require(ends[-1] == len(query), f"actual_seq_lengths end at {ends[-1]}, needed: the {len(query)} rows of query")
    require(
        len(queries) == len(keys) == len(block_table),
        f"{len(queries)} requests with queries, {len(keys)} with keys, {len(block_table)} rows of block_table",
    )
    require(min(queries) > 0, "a request has no query")
    require_dtype("block_table", block_table, (torch.int32,))
    most = block_table.shape[1] * block_size
    require(max(keys) <= most, f"a request has {max(keys)} keys, its row of block_table holds {most}")
    masks = MaskArguments(atten_mask, sparse_mode, pre_tokens, next_tokens, inner_precise)
    longest = (max(queries), max(keys))
    outputs = []
    for rows, length, table in zip(query.split(queries), keys, block_table.long(), strict=True):
        used = table[: -(-length // block_size)]
        require(
            bool(((used >= 0) & (used < len(key))).all()), f"block_table names blocks outside of 0 to {len(key) - 1}"
        )
        own = [cache[used].flatten(0, 1)[:length].unflatten(1, (groups, -1)) for cache in (key, value)]
        tensors = [t.transpose(0, 1).unsqueeze(0) for t in (rows, *own)]
        visible = masks.visible_in_sequence(len(rows), length, longest)
        outputs.append(Attention(tensors[0], tensors[1], tensors[2], scale, visible).forward()[0][0].transpose(0, 1))
    return torch.cat(outputs).to(query.dtype), query.new_empty(0, dtype=torch.float32)


def _check_cache(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, groups: int, block_size: int
) -> None:
    require_same_dtype(query=query, key=key, value=value)
    require_dtype("query", query, _HALF)
    require_dim("query", query, 3)
    size = query.shape[2]
    require(query.shape[1] == heads, f"query has {query.shape[1]} heads, needed: num_heads {heads}")
    require(size in (64, 128), f"head size is {size}, allowed: 64, 128")
    require(heads % groups == 0, f"num_heads {heads} is no multiple of num_key_value_heads {groups}")
    require(
        block_size % 128 == 0 and 0 < block_size <= 512,
        f"block_size is {block_size}, allowed: multiples of 128 up to 512",
    )
    require_dim("key", key, 3)
    for name, cache in (("key", key), ("value", value)):
        require_shape(name, cache, (len(key), block_size, groups * size))


@kernel(
    "npu_scatter_pa_kv_cache",
    source=f"{_OP_PLUGIN}npu_scatter_pa_kv_cache.md",
    assumes=("Of tokens with one slot the last is kept.", "Only cache_mode 'Norm' is modelled."),
)
def npu_scatter_pa_kv_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    cache_mode: str | None,
) -> None:
    """Write each token's key and value to its slot, in place.

    Args:
        key: ``[tokens, heads, size]``.
        value: As `key`; the head size may differ.
        key_cache: ``[blocks, block_size, heads, size]``.
        value_cache: As `key_cache`, with the size of `value`.
        slot_mapping: int32 or int64 ``[tokens]``: block times block_size plus place.
        cache_mode: Only "Norm".
    """
    if cache_mode != "Norm":
        raise NotModelled(f"cache_mode {cache_mode} is not modelled")
    require_same_dtype(key=key, value=value, key_cache=key_cache, value_cache=value_cache)
    require_dtype("slot_mapping", slot_mapping, (torch.int32, torch.int64))
    require_shape("slot_mapping", slot_mapping, (len(key),))
    slots = slot_mapping.long()
    for name, rows, cache in (("key", key, key_cache), ("value", value, value_cache)):
        require_dim(name, rows, 3)
        require_shape(f"{name}_cache", cache, (len(key_cache), key_cache.shape[1], *rows.shape[1:]))
        places = cache.shape[0] * cache.shape[1]
        require(bool(((slots >= 0) & (slots < places)).all()), f"slot_mapping leaves 0 to {places - 1}")
        for slot, row in zip(slots.tolist(), rows, strict=True):
            cache.view(places, *rows.shape[1:])[slot] = row
