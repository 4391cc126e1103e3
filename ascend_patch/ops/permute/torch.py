"""Token permutation as two adjoint operations: copying rows, and adding copies up.

Each is the other's gradient, so neither direction scatters: adding up reads every copy once, in a fixed order, as
``embedding_bag`` does for the rows of an embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.function import apply
from ascend_patch.ops.numerics import accumulation_dtype


def permute(
    tokens: Tensor, routing_map: Tensor, probs: Tensor | None, num_out_tokens: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """See :func:`ascend_patch.ops.permute.permute`."""
    order = _order_by_expert(routing_map, num_out_tokens)
    sorted_indices = order % max(1, tokens.shape[0])
    permuted_probs = probs.t().reshape(-1).index_select(0, order) if probs is not None else None
    return apply(_CopyRows, tokens, sorted_indices), permuted_probs, sorted_indices


def unpermute(
    permuted: Tensor,
    sorted_indices: Tensor,
    restore_shape: Sequence[int],
    probs: Tensor | None = None,
    routing_map: Tensor | None = None,
) -> Tensor:
    """See :func:`ascend_patch.ops.permute.unpermute`."""
    rows = permuted
    if probs is not None and routing_map is not None:
        dtype = accumulation_dtype(permuted.dtype)
        by_row = probs.t().masked_select(routing_map.t())
        rows = permuted.to(dtype) * by_row.to(dtype).unsqueeze(-1)
    return apply(_AddCopies, rows, sorted_indices, restore_shape[0]).to(permuted.dtype)


def sort_chunks(
    x: Tensor, split_sizes: list[int], sorted_idxs: list[int], probs: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """See :func:`ascend_patch.ops.permute.sort_chunks`."""
    # Not where other chunks are merely empty: upstream frees the input (--overlap-moe-expert-parallel-comm).
    if list(sorted_idxs) == sorted(sorted_idxs):
        return x, probs

    def reorder(t: Tensor) -> Tensor:
        chunks = t.split(split_sizes)
        return torch.cat([chunks[i] for i in sorted_idxs])

    return reorder(x), reorder(probs) if probs is not None else None


def _order_by_expert(routing_map: Tensor, num_out_tokens: int) -> Tensor:
    """Positions in the transposed, flattened map: the True ones, in ascending order."""
    by_expert = routing_map.bool().t().reshape(-1)
    if by_expert.device.type == "cpu":
        order = by_expert.nonzero().squeeze(-1)
        if order.shape[0] >= num_out_tokens:
            return order[:num_out_tokens]
    # Elsewhere nonzero() would wait for the device to learn how many there are.
    return by_expert.to(torch.int8).argsort(descending=True, stable=True)[:num_out_tokens]


class _CopyRows(torch.autograd.Function):
    """``rows[sources]``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sources: Tensor) -> Tensor:
        ctx.save_for_backward(sources)
        ctx.num_rows = rows.shape[0]
        return rows.index_select(0, sources)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_copies: Tensor) -> tuple[Tensor, None]:
        (sources,) = ctx.saved_tensors
        return _add_copies(grad_copies, sources, ctx.num_rows), None


class _AddCopies(torch.autograd.Function):
    """Row ``i`` of the result is the sum of ``copies[sources == i]``."""

    @staticmethod
    def forward(ctx: Any, copies: Tensor, sources: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(sources)
        return _add_copies(copies, sources, num_rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor, None, None]:
        (sources,) = ctx.saved_tensors
        return grad_rows.index_select(0, sources), None, None


def _add_copies(copies: Tensor, sources: Tensor, num_rows: int) -> Tensor:
    if copies.numel() == 0:
        return copies.new_zeros(num_rows, copies.shape[1])
    by_source = sources.argsort(stable=True)
    if sources.device.type == "cpu":
        counts = torch.bincount(sources, minlength=num_rows)
        starts = counts.cumsum(0) - counts
    else:
        # bincount() would wait for the device to learn the largest value.
        starts = torch.searchsorted(sources[by_source], torch.arange(num_rows, device=sources.device))
    return torch.nn.functional.embedding_bag(by_source, copies.contiguous(), starts, mode="sum")
