"""A context parallel rank's part of a batch: how each release of upstream is asked for it."""

import inspect
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import get_batch_on_this_cp_rank

_arguments: dict[str, Any] = {}
if "is_hybrid_cp" in inspect.signature(get_batch_on_this_cp_rank).parameters:  # from 0.18 on
    _arguments["is_hybrid_cp"] = False


def part_of_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``batch`` (``[b, s]``, masks ``[b, 1, s, s]``) with the positions of this rank, ``[b, s / ranks]``."""
    if parallel_state.get_context_parallel_world_size() == 1:
        return batch
    split = get_batch_on_this_cp_rank(
        {"cu_seqlens": None} | batch, cp_group=parallel_state.get_context_parallel_group(), **_arguments
    )
    return {name: t for name, t in split.items() if t is not None}
