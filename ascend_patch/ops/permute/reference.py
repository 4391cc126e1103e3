"""Token permutation in plain PyTorch: the oracle for the other variants."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ascend_patch.ops.numerics import accumulation_dtype


def permute(
    tokens: Tensor, routing_map: Tensor, probs: Tensor | None, num_out_tokens: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """See :func:`ascend_patch.ops.permute.permute`."""
    by_expert = routing_map.bool().t().reshape(-1)
    # Stable: the True entries first, in the order of experts and, within one, of tokens.
    order = by_expert.to(torch.int8).argsort(descending=True, stable=True)[:num_out_tokens]
    sorted_indices = order % tokens.shape[0] if len(order) else order
    permuted_probs = probs.t().reshape(-1)[order] if probs is not None else None
    return tokens[sorted_indices], permuted_probs, sorted_indices


def unpermute(
    permuted: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
) -> Tensor:
    """See :func:`ascend_patch.ops.permute.unpermute`."""
    dtype = accumulation_dtype(permuted.dtype)
    wide = permuted.to(dtype)
    if probs is not None and routing_map is not None:
        wide = wide * probs.t()[routing_map.t()].to(dtype).unsqueeze(-1)
    restored = wide.new_zeros(tuple(restore_shape)).index_add(0, sorted_indices, wide)
    return restored.to(permuted.dtype)


def sort_chunks(
    x: Tensor, split_sizes: list[int], sorted_idxs: list[int], probs: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """See :func:`ascend_patch.ops.permute.sort_chunks`."""

    def reorder(t: Tensor) -> Tensor:
        chunks = t.split(split_sizes)
        return torch.cat([chunks[i] for i in sorted_idxs]) if sorted_idxs else t

    return reorder(x), reorder(probs) if probs is not None else None
