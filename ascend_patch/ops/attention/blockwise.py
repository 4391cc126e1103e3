"""Attention over blocks of queries: on the host all of it, elsewhere what PyTorch's kernels do not take.

PyTorch's flash kernel for the CPU spends most of its time outside matrix multiplication, and cannot group
queries or slide a window. Here each block of queries meets only the keys that it may see, so neither an
``[sq, sk]`` mask nor the full scores ever exist, and the work is left to the library's batched products and
its fused softmax. The queries that share a key head are rows of one product, so keys and values are not
repeated. The backward pass computes the weights again instead of keeping them, and draws again what dropout keeps.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.attention.masks import visible_range
from ascend_patch.ops.function import apply
from ascend_patch.ops.numerics import accumulation_dtype

_BLOCK_SCORES = 2**20
"""How many scores are computed at a time, at most: they should stay in the cache from one product to the next."""
_DEVICE_BLOCK_SCORES = 2**25
"""The same on a device, where it bounds memory."""
_LEAST_QUERIES = 16
"""Queries in a block even if its scores then exceed the cache; products with fewer rows are slow."""


def blockwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    causal: bool,
    window: tuple[int, int] | None,
    mask: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """See :func:`ascend_patch.ops.attention.attention`."""
    return apply(_BlockwiseAttention, query, key, value, scale, causal, window, mask, dropout_p)


class Block(NamedTuple):
    """Queries ``first`` to ``end`` and the range of keys that at least one of them may see."""

    first: int
    end: int
    keys: slice


class Scores:
    """Makes the scores and attention weights of one block of queries after the other.

    Tensors are in the layout ``[b * ng, s * r, hn]``, where ``r`` is the number of query heads per key head:
    the rows of one query are adjacent.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        scale: float,
        causal: bool,
        window: tuple[int, int] | None,
        mask: Tensor | None,
    ) -> None:
        self.sq, self.batch, heads, _ = query.shape
        self.sk, _, self.groups, _ = key.shape
        self.repeats = heads // self.groups
        self.scale = scale
        self.block_scores = _BLOCK_SCORES if query.device.type == "cpu" else _DEVICE_BLOCK_SCORES
        self.low, self.high = visible_range(self.sq, self.sk, causal, window)
        self.mask = None
        if mask is not None:
            mask = mask.expand(self.batch, heads, self.sq, self.sk)
            self.mask = mask.unflatten(1, (self.groups, self.repeats)).transpose(2, 3)
        self.some_row_may_be_empty = mask is not None or self.high < 0

    def blocks(self) -> Iterator[Block]:
        of_head = self.block_scores // max(1, self.batch * self.groups * self.repeats)
        # n queries meet all keys, or within a band n more than the first of them does.
        band = max(0, self.high - self.low)
        within_band = (math.isqrt(band**2 + 4 * of_head) - band) // 2
        step = max(_LEAST_QUERIES, of_head // max(1, self.sk), within_band)
        for first in range(0, self.sq, step):
            end = min(first + step, self.sq)
            keys = slice(max(0, first + self.low), min(self.sk, end + self.high))
            if keys.start < keys.stop:
                yield Block(first, end, keys)

    def rows(self, block: Block) -> slice:
        return slice(block.first * self.repeats, block.end * self.repeats)

    def of_block(self, query_rows: Tensor, key_rows: Tensor, block: Block) -> Tensor:
        """The block's scores, ``[b * ng, rows, keys]``, -inf where hidden; products accumulate in float32."""
        scores = scaled_bmm(query_rows[:, self.rows(block)], key_rows[:, block.keys].transpose(1, 2), self.scale)
        # [b, ng, queries, r, keys]
        queries = block.end - block.first
        by_query = scores.view(self.batch, self.groups, queries, self.repeats, scores.shape[-1])
        self._hide_edges(by_query, block)
        if self.mask is not None:
            by_query.masked_fill_(self.mask[:, :, block.first : block.end, :, block.keys], -torch.inf)
        return scores

    def weights(self, query_rows: Tensor, key_rows: Tensor, block: Block) -> Tensor:
        """Softmax of the block's scores."""
        scores = self.of_block(query_rows, key_rows, block)
        weights = torch.softmax(scores, dim=-1)
        if self.some_row_may_be_empty:
            empty = scores.amax(dim=-1, keepdim=True) == -torch.inf
            weights = weights.masked_fill_(empty, 0.0)
        return weights

    def _hide_edges(self, by_query: Tensor, block: Block) -> None:
        """Only the first and the last keys of the range are hidden from some of the block's queries."""
        queries = torch.arange(block.first, block.end, device=by_query.device).view(-1, 1, 1)
        keys = torch.arange(block.keys.start, block.keys.stop, device=by_query.device)
        too_early = slice(0, max(0, block.end - 1 + self.low - block.keys.start))
        if too_early.stop > 0:
            by_query[..., too_early].masked_fill_(keys[too_early] < queries + self.low, -torch.inf)
        too_late = slice(max(0, block.first + self.high + 1 - block.keys.start), None)
        if too_late.start < len(keys):
            by_query[..., too_late].masked_fill_(keys[too_late] > queries + self.high, -torch.inf)


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        causal: bool,
        window: tuple[int, int] | None,
        mask: Tensor | None,
        dropout_p: float,
    ) -> Tensor:
        scores = Scores(query, key, scale, causal, window, mask)
        query_rows, key_rows, value_rows = (group_major(t, scores.groups) for t in (query, key, value))
        heads = query.shape[2]
        generator = _current_generator(query.device) if dropout_p > 0.0 else None
        ctx.generator = None if generator is None else generator.clone_state()
        ctx.dropout_p = dropout_p
        output = query.new_zeros(scores.sq, scores.batch * scores.groups, scores.repeats * value.shape[3])
        for block in scores.blocks():
            weights = scores.weights(query_rows, key_rows, block)
            if generator is not None:
                _drop_(weights, _draw(weights, dropout_p, generator), dropout_p)
            output[block.first : block.end] = query_major(torch.bmm(weights, value_rows[:, block.keys]), scores.repeats)
        ctx.save_for_backward(query_rows, key_rows, value_rows)
        ctx.scores = scores
        return output.view(scores.sq, scores.batch, heads * value.shape[3])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query_rows, key_rows, value_rows = ctx.saved_tensors
        scores: Scores = ctx.scores
        # The weights that the forward pass dropped; the generator stays as it is for another backward pass.
        generator = None if ctx.generator is None else ctx.generator.clone_state()
        heads = scores.groups * scores.repeats
        grad_output_rows = group_major(grad_output.unflatten(-1, (heads, value_rows.shape[2])), scores.groups)
        grad_query = query_rows.new_zeros(scores.sq, scores.batch * scores.groups, scores.repeats * query_rows.shape[2])
        # Every block of queries adds to these.
        sum_dtype = accumulation_dtype(query_rows.dtype)
        grad_key_rows = torch.zeros_like(key_rows, dtype=sum_dtype)
        grad_value_rows = torch.zeros_like(value_rows, dtype=sum_dtype)
        for block in scores.blocks():
            rows, keys = scores.rows(block), block.keys
            weights = scores.weights(query_rows, key_rows, block)
            grad_rows = grad_output_rows[:, rows]
            grad_weights = torch.bmm(grad_rows, value_rows[:, keys].transpose(1, 2))
            kept = weights
            if generator is not None:
                dropped = _draw(weights, ctx.dropout_p, generator)
                kept = _drop_(weights.clone(), dropped, ctx.dropout_p)
                _drop_(grad_weights, dropped, ctx.dropout_p)
            grad_value_rows[:, keys] += torch.bmm(kept.transpose(1, 2), grad_rows).to(sum_dtype)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_query[block.first : block.end] = query_major(
                scaled_bmm(grad_scores, key_rows[:, keys], scores.scale), scores.repeats
            )
            grad_key_rows[:, keys] += scaled_bmm(grad_scores.transpose(1, 2), query_rows[:, rows], scores.scale).to(
                sum_dtype
            )
        return (
            grad_query.view(scores.sq, scores.batch, heads, query_rows.shape[2]),
            grad_key_rows.to(key_rows.dtype).transpose(0, 1).unflatten(1, (scores.batch, scores.groups)),
            grad_value_rows.to(value_rows.dtype).transpose(0, 1).unflatten(1, (scores.batch, scores.groups)),
            None,
            None,
            None,
            None,
            None,
        )


def _current_generator(device: torch.device) -> torch.Generator:
    """The one that PyTorch's dropout draws from."""
    if device.type == "cpu":
        return torch.default_generator
    return torch.get_device_module(device).default_generators[device.index]


def _draw(weights: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Bool, True where a weight is dropped."""
    return torch.empty_like(weights, dtype=torch.bool).bernoulli_(p, generator=generator)


def _drop_(t: Tensor, dropped: Tensor, p: float) -> Tensor:
    """``t`` without what is dropped, the rest scaled up."""
    return t.masked_fill_(dropped, 0.0).mul_(1.0 / (1.0 - p) if p < 1.0 else 0.0)


def scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale * a @ b``, scaled before it is rounded."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0.0, alpha=scale)


def group_major(t: Tensor, groups: int) -> Tensor:
    """``[s, b, heads, h]`` to ``[b * groups, s * r, h]``, contiguous."""
    s, b, heads, h = t.shape
    t = t.reshape(s, b * groups, heads // groups, h).transpose(0, 1)
    return t.reshape(b * groups, s * (heads // groups), h).contiguous()


def query_major(rows: Tensor, repeats: int) -> Tensor:
    """``[b * groups, queries * r, h]`` to ``[queries, b * groups, r * h]``, a view."""
    return rows.view(rows.shape[0], rows.shape[1] // repeats, repeats * rows.shape[2]).transpose(0, 1)
