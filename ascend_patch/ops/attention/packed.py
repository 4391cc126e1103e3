"""Packed sequences as a loop over them."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor


def attention_by_sequence(
    attention: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_kv: Tensor,
    **options: object,
) -> Tensor:
    """Apply ``attention`` (``sbhd`` layout) to each sequence of a ``thd`` batch; see ``attention_thd``."""
    attend = partial(attention, **options)
    spans_q, spans_kv = pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_kv.tolist())
    outputs = []
    for (start_q, end_q), (start_kv, end_kv) in zip(spans_q, spans_kv, strict=True):
        rows, keys = slice(start_q, end_q), slice(start_kv, end_kv)
        outputs.append(attend(query[rows].unsqueeze(1), key[keys].unsqueeze(1), value[keys].unsqueeze(1)))
    covered = sum(output.shape[0] for output in outputs)
    rest = query.new_zeros(query.shape[0] - covered, 1, query.shape[1] * value.shape[2])
    return torch.cat([*outputs, rest]).squeeze(1)
