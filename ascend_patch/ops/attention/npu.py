"""Attention through ``npu_fusion_attention``: flash attention that knows grouped queries, windows and packing.

Megatron's ``[s, b, heads, hn]`` is the operator's layout SBH and packed sequences are its TND, so nothing is
transposed; heads that are not adjacent (the values, a view of the joint projection) are copied once. Causality and
windows are the sparse modes 3 and 4, which count from the last query and key as our contract does; their mask is the
same 2048 x 2048 triangle whatever the lengths, one a device. Only an explicit mask is ever read in full.

Constraints: torch_npu's documentation of npu_fusion_attention, and of the sparse modes in CANN's
"sparse_mode" page (Ascend/op-plugin, docs/zh/custom_APIs; ops-transformer, docs/context).
"""

import functools
from itertools import pairwise
from typing import Any

import torch
import torch_npu
from torch import Tensor

from ascend_patch.ops.ascend import require_tensors
from ascend_patch.ops.attention.masks import visible_keys
from ascend_patch.ops.derived import host_list
from ascend_patch.ops.registry import Unsupported

_OPERATOR = "npu_fusion_attention"
_LARGEST_HEAD = 768
_MOST_HEADS = 256
_MOST_PACKED_SEQUENCES = 1024

_NO_LIMIT = 2**31 - 1
"""The operator's value for a side of the window that has no end."""
_FULL_MASK, _RIGHT_DOWN_CAUSAL, _BAND = 1, 3, 4
"""Values of ``sparse_mode``."""
_STATISTIC_REPEATS = 8
"""How often the operator repeats the statistics of a query."""
_KEEP_EMPTY_ROWS = 2
"""Value of ``inner_precise`` with which a query that sees no key gets zeros."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    causal: bool,
    window: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """See :func:`ascend_patch.ops.attention.attention`."""
    _check(query, key, value, dropout_p)
    sq, batch, heads, _ = query.shape
    sk = key.shape[0]
    if 0 in (sq, sk, batch):
        raise Unsupported(f"an empty sequence or batch; {_OPERATOR} takes at least one token")
    if mask is None:
        # Limits beyond the sequence are none: the operator skips less work for a band than for causality.
        masking = _masking(query.device, *_limits(causal, window, sq, sk))
    else:
        masking = {"atten_mask": _full_mask(mask, query, sk, causal, window), "sparse_mode": _FULL_MASK}
    if mask is not None or sq > sk:
        masking["inner_precise"] = _KEEP_EMPTY_ROWS
    return torch_npu.npu_fusion_attention(
        query.flatten(2),
        key.flatten(2),
        value.flatten(2),
        heads,
        "SBH",
        scale=scale,
        keep_prob=1.0 - dropout_p,
        **masking,
    )[0]


def attention_thd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_kv: Tensor,
    *,
    scale: float,
    causal: bool,
    window: tuple[int, int] | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """See :func:`ascend_patch.ops.attention.attention_thd`."""
    _check(query, key, value, dropout_p)
    tokens, heads, _ = query.shape
    left, right = _limits(causal, window, max_queries=tokens, max_keys=key.shape[0])
    ends_q, ends_kv = _ends(host_list(cu_seqlens_q), host_list(cu_seqlens_kv), right)
    output = torch_npu.npu_fusion_attention(
        _first(query, ends_q[-1]),
        _first(key, ends_kv[-1]),
        _first(value, ends_kv[-1]),
        heads,
        "TND",
        scale=scale,
        keep_prob=1.0 - dropout_p,
        actual_seq_qlen=ends_q,
        actual_seq_kvlen=ends_kv,
        **_masking(query.device, left, right),
    )[0].flatten(1)
    rest = tokens - ends_q[-1]
    return torch.nn.functional.pad(output, (0, 0, 0, rest)) if rest else output


@torch.no_grad()
def attention_forward(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`ascend_patch.ops.attention.attention_forward`."""
    _check_part(query, key, value)
    output, maximum, total, *_ = torch_npu.npu_fusion_attention(
        query.flatten(2),
        key.flatten(2),
        value.flatten(2),
        query.shape[2],
        "SBH",
        scale=scale,
        **_masking(query.device, *_limits(causal, None, query.shape[0], key.shape[0])),
    )
    # [b, np, sq, 8], eight times the same
    return output, maximum[..., 0] + total[..., 0].log()


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
    """See :func:`ascend_patch.ops.attention.attention_backward`.

    The operator divides ``exp(score - softmax_max)`` by ``softmax_sum``: the log-sum-exp takes the place of the
    maximum beside a sum of one.
    """
    _check_part(query, key, value)
    maximum = lse.unsqueeze(-1).expand(*lse.shape, _STATISTIC_REPEATS).contiguous()
    grads = torch_npu.npu_fusion_attention_grad(
        query.flatten(2),
        key.flatten(2),
        value.flatten(2),
        grad_output,
        query.shape[2],
        "SBH",
        softmax_max=maximum,
        softmax_sum=torch.ones_like(maximum),
        attention_in=output,
        scale_value=scale,
        **_masking(query.device, *_limits(causal, None, query.shape[0], key.shape[0])),
    )
    grad_query, grad_key, grad_value = (
        grad.view(t.shape) for grad, t in zip(grads[:3], (query, key, value), strict=True)
    )
    return grad_query, grad_key, grad_value


def _check_part(query: Tensor, key: Tensor, value: Tensor) -> None:
    _check(query, key, value, dropout_p=0.0)
    if 0 in query.shape[:2]:
        raise Unsupported(f"an empty sequence or batch; {_OPERATOR} takes at least one token")


def _first(t: Tensor, rows: int) -> Tensor:
    """The first rows; ``t`` itself where that is all, because the gradient of a slice is a copy."""
    return t if rows == t.shape[0] else t[:rows]


def _check(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> None:
    require_tensors(_OPERATOR, query, key, value)
    if not query.dtype == key.dtype == value.dtype:
        raise Unsupported(f"query, key and value of different dtypes; {_OPERATOR} takes one")
    heads, size = query.shape[-2:]
    if size != value.shape[-1]:
        raise Unsupported(f"keys of size {size} with values of size {value.shape[-1]}; {_OPERATOR} takes equal ones")
    if size > _LARGEST_HEAD:
        raise Unsupported(f"head size {size}; {_OPERATOR} takes up to {_LARGEST_HEAD}")
    if heads > _MOST_HEADS:
        raise Unsupported(f"{heads} query heads; {_OPERATOR} takes up to {_MOST_HEADS}")
    if dropout_p >= 1.0:
        raise Unsupported(f"a dropout probability of 1; {_OPERATOR} takes less")


def _limits(causal: bool, window: tuple[int, int] | None, max_queries: int, max_keys: int) -> tuple[int, int]:
    """How many keys before and after its own position a query sees, ``_NO_LIMIT`` where none is hidden."""
    left, right = window if window is not None else (-1, -1)
    if causal:
        right = 0
    unlimited_left = left < 0 or left >= max_keys - 1
    unlimited_right = right < 0 or (right >= max_queries - 1 and not causal)
    return _NO_LIMIT if unlimited_left else left, _NO_LIMIT if unlimited_right else right


def _masking(device: torch.device, left: int, right: int) -> dict[str, Any]:
    """The arguments that hide what lies outside of the limits."""
    if left == right == _NO_LIMIT:
        return {}
    if left == _NO_LIMIT and right == 0:
        return {"atten_mask": triangle(device), "sparse_mode": _RIGHT_DOWN_CAUSAL}
    return {
        "atten_mask": triangle(device),
        "sparse_mode": _BAND,
        "pre_tockens": left,  # spelled like that by the operator
        "next_tockens": right,
    }


@functools.cache
def triangle(device: torch.device) -> Tensor:
    """The compressed mask of the sparse modes: bool ``[2048, 2048]``, True above the diagonal."""
    with torch.inference_mode(False):  # a later backward pass is to save it
        return torch.ones(2048, 2048, dtype=torch.bool, device=device).triu_(diagonal=1)


def _full_mask(mask: Tensor, query: Tensor, sk: int, causal: bool, window: tuple[int, int] | None) -> Tensor:
    """``mask`` and what else hides keys, ``[1 or b, 1, sq, sk]``, or ``[b, np, sq, sk]`` where heads differ."""
    sq, batch, heads, _ = query.shape
    if causal or window is not None:
        mask = mask | ~visible_keys(sq, sk, causal, window, query.device)
    mask = mask[(None,) * (4 - mask.dim())]
    leading = (mask.shape[0], 1) if mask.shape[1] == 1 else (batch, heads)
    return mask.expand(*leading, sq, sk).contiguous()


def _ends(cu_seqlens_q: list[int], cu_seqlens_kv: list[int], right: int) -> tuple[list[int], list[int]]:
    """Where each packed sequence ends, without those that are empty on both sides."""
    ends_q, ends_kv = [], []
    for (start_q, end_q), (start_kv, end_kv) in zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_kv), strict=True):
        queries, keys = end_q - start_q, end_kv - start_kv
        if queries > 0 and keys == 0 or queries - keys > right:
            raise Unsupported(f"a packed sequence with queries that see no key; {_OPERATOR} takes none")
        if queries or keys:
            ends_q.append(end_q)
            ends_kv.append(end_kv)
    if not ends_q or ends_q[-1] == 0:
        raise Unsupported(f"packed sequences that are all empty; {_OPERATOR} takes at least one token")
    if len(ends_q) > _MOST_PACKED_SEQUENCES:
        raise Unsupported(f"more than {_MOST_PACKED_SEQUENCES} packed sequences; {_OPERATOR} takes no more")
    return ends_q, ends_kv
