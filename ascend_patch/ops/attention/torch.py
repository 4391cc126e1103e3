"""Attention with what PyTorch has on every device.

On the host, and for causal queries that are fewer than the keys, :mod:`ascend_patch.ops.attention.blockwise`; parts of
the keys by :mod:`ascend_patch.ops.attention.parts`. Elsewhere, and with dropout, PyTorch's own
``scaled_dot_product_attention``, whose flash kernels cover the causal case; there a sliding window costs an
``[sq, sk]`` mask, and the backward pass is deterministic under ``torch.use_deterministic_algorithms`` only.
"""

import torch
from torch import Tensor

from ascend_patch.ops.attention.blockwise import blockwise_attention
from ascend_patch.ops.attention.masks import visible_keys
from ascend_patch.ops.attention.packed import by_sequence
from ascend_patch.ops.attention.parts import attention_backward, attention_forward

__all__ = ["attention", "attention_backward", "attention_forward", "attention_thd"]


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
    # Those of a context parallel rank, whose mask would be almost one of sequence x sequence.
    some_of_the_queries = causal and mask is None and 1 < query.shape[0] < key.shape[0]
    if dropout_p == 0.0 and (query.device.type == "cpu" or some_of_the_queries):
        return blockwise_attention(query, key, value, scale, causal, window, mask)
    plainly_causal = causal and window is None and mask is None and query.shape[0] == key.shape[0]
    visible = None
    if not plainly_causal and (causal or window is not None or mask is not None):
        visible = visible_keys(query.shape[0], key.shape[0], causal, window, query.device)
        if mask is not None:
            visible = visible & ~mask
    output = torch.nn.functional.scaled_dot_product_attention(
        query.permute(1, 2, 0, 3),
        key.permute(1, 2, 0, 3),
        value.permute(1, 2, 0, 3),
        attn_mask=visible,
        dropout_p=dropout_p,
        is_causal=plainly_causal,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return output.permute(2, 0, 1, 3).flatten(2)


attention_thd = by_sequence(attention)
