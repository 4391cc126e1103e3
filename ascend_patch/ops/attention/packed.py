"""Packed sequences as a loop over them."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor


def by_sequence(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The ``attention_thd`` of a variant: its ``attention`` (``sbhd`` layout) on each sequence of a ``thd`` batch."""

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
        attend = partial(attention, scale=scale, causal=causal, window=window, dropout_p=dropout_p)
        spans_q, spans_kv = pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_kv.tolist())
        outputs = []
        for (start_q, end_q), (start_kv, end_kv) in zip(spans_q, spans_kv, strict=True):
            rows, keys = slice(start_q, end_q), slice(start_kv, end_kv)
            outputs.append(attend(query[rows].unsqueeze(1), key[keys].unsqueeze(1), value[keys].unsqueeze(1)))
        covered = sum(output.shape[0] for output in outputs)
        rest = query.new_zeros(query.shape[0] - covered, 1, query.shape[1] * value.shape[2])
        return torch.cat([*outputs, rest]).squeeze(1)

    return attention_thd
