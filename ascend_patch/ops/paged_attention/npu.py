"""Paged attention through ``npu_fused_infer_attention_score``, and ``npu_scatter_pa_kv_cache`` to write the cache.

Layout TND with a block table: the queries of all requests behind each other, and the cache as it is. Causality and
windows are sparse modes 3 and 4 with the triangle that stands for any length.

Constraints: torch_npu's documentation of npu_fused_infer_attention_score and npu_scatter_pa_kv_cache
(Ascend/op-plugin, docs/zh/custom_APIs).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch_npu
from torch import Tensor

from ascend_patch.ops.ascend import require_tensors
from ascend_patch.ops.attention.npu import triangle
from ascend_patch.ops.registry import Unsupported

_ATTENTION = "npu_fused_infer_attention_score"
_STORE = "npu_scatter_pa_kv_cache"
_HALF = (torch.float16, torch.bfloat16)
_HEAD_SIZES = (64, 128)
_BLOCK_UNIT, _LARGEST_BLOCK = 128, 512
_CAUSAL, _BAND = 3, 4
"""Values of ``sparse_mode``."""


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
    _check(query, key_cache, value_cache)
    lengths = [end - start for start, end in pairwise(cu_seqlens_q)]
    tokens = cu_seqlens_q[-1]
    if tokens == 0:
        return torch.zeros_like(query)
    asking = [request for request, length in enumerate(lengths) if length]
    table = block_table[: len(lengths)]
    if len(asking) < len(lengths):
        table = table[torch.tensor(asking, device=table.device)]
    block, groups = key_cache.shape[1:3]
    masking: dict[str, Any] = {"sparse_mode": _CAUSAL}
    if window is not None and window[0] >= 0:
        masking = {"sparse_mode": _BAND, "pre_tokens": window[0], "next_tokens": 0}
    output = torch_npu.npu_fused_infer_attention_score(
        query[:tokens].contiguous(),
        key_cache.flatten(2),
        value_cache.flatten(2),
        atten_mask=triangle(query.device),
        actual_seq_lengths=[cu_seqlens_q[request + 1] for request in asking],
        actual_seq_lengths_kv=[seqlens_k[request] for request in asking],
        block_table=table.to(torch.int32).contiguous(),
        num_heads=query.shape[1],
        scale=scale,
        input_layout="TND",
        num_key_value_heads=groups,
        block_size=block,
        **masking,
    )[0]
    rest = len(query) - tokens
    return torch.nn.functional.pad(output, (0, 0, 0, 0, 0, rest)) if rest else output


def store_keys_values(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """See :func:`ascend_patch.ops.paged_attention.store_keys_values`."""
    require_tensors(_STORE, key, value, key_cache, value_cache)
    if len(slots) == 0:
        return
    torch_npu.npu_scatter_pa_kv_cache(
        key.contiguous(),
        value.contiguous(),
        key_cache,
        value_cache,
        slots.to(torch.int32).contiguous(),
        cache_mode="Norm",
    )


def _check(query: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    require_tensors(_ATTENTION, query, key_cache, value_cache)
    if query.dtype not in _HALF or not query.dtype == key_cache.dtype == value_cache.dtype:
        raise Unsupported(f"dtype {str(query.dtype).removeprefix('torch.')}; {_ATTENTION} takes float16 and bfloat16")
    if query.shape[2] not in _HEAD_SIZES:
        raise Unsupported(f"head size {query.shape[2]}; {_ATTENTION} takes 64 and 128 in packed sequences")
    block = key_cache.shape[1]
    if block % _BLOCK_UNIT or block > _LARGEST_BLOCK:
        raise Unsupported(f"a cache in blocks of {block}; {_ATTENTION} takes multiples of 128 up to 512")
