"""Attention with what PyTorch has on every device, without a mask or scores of ``[sq, sk]``.

On a GPU, where nothing but causality hides keys, a kernel of PyTorch's ``scaled_dot_product_attention``, whose backward
pass is deterministic under ``torch.use_deterministic_algorithms`` only; its fallback, which makes all scores, is not
used. Everything else is :mod:`ascend_patch.ops.attention.blockwise`, parts of the keys are
:mod:`ascend_patch.ops.attention.parts`.
"""

import torch
from torch import Tensor
from torch.backends import cuda

from ascend_patch.ops.attention.blockwise import blockwise_attention
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
    causal = causal and query.shape[0] != 1  # the last query sees every key
    # The kernels' causality counts from the first query, ours from the last.
    plain = window is None and mask is None and (not causal or query.shape[0] == key.shape[0])
    q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
    grouped = query.shape[2] != key.shape[2]
    if not plain or not _has_kernel(query.device, cuda.SDPAParams(q, k, v, None, dropout_p, causal, grouped)):
        return blockwise_attention(query, key, value, scale, causal, window, mask, dropout_p)
    output = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout_p, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return output.permute(2, 0, 1, 3).flatten(2)


attention_thd = by_sequence(attention)


def _has_kernel(device: torch.device, call: cuda.SDPAParams) -> bool:
    """Whether PyTorch has one that does not make all scores; that of the host is slower than ours."""
    return device.type == "cuda" and (cuda.can_use_flash_attention(call) or cuda.can_use_efficient_attention(call))
