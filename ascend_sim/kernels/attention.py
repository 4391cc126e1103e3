"""Fused attention: npu_fusion_attention and its gradient, in every layout, packed sequences included."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ascend_sim.errors import ConstraintError, require
from ascend_sim.kernels import random
from ascend_sim.kernels.attention_core import Attention
from ascend_sim.kernels.attention_mask import MaskArguments, Visible
from ascend_sim.kernels.checks import require_choice, require_dim, require_dtype, require_same_dtype, require_shape
from ascend_sim.kernels.registry import kernel

_SOURCE = (
    "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu/torch_npu-npu_fusion_attention.md; "
    "op_plugin/ops/opapi/FlashAttentionKernelNpuOpApi.cpp (Ascend/op-plugin 26.0.0); aclnnFlashAttentionScore.md and "
    "aclnnFlashAttentionVarLenScore.md in gitcode.com/cann/ops-transformer, attention/flash_attention_score/docs"
)
_LAYOUTS = ("BSH", "SBH", "BSND", "BNSD", "TND")
_LARGEST_HEAD = 768
_MOST_HEADS = 256
_LONGEST = 1 << 20
_MOST_SEQUENCES = 2048
_LANES = 8  # softmax maximum and sum are repeated to one 32-byte block


@kernel(
    "npu_fusion_attention",
    source=_SOURCE,
    assumes=(
        "The dropout mask depends on seed and offset alone; its bits are not those of the device.",
        "A query that may see no key (sparse_mode 3 with fewer keys than queries, or inner_precise 2) gives zero.",
        "Scores and sums are kept in float32; only the results are rounded.",
        "Calls that the device accepts but whose sparse_mode, pre_tockens or next_tockens it ignores for want of an "
        "atten_mask are refused.",
        "Packed sequences must cover all tokens; the form with zeros at the end of actual_seq_qlen is not modelled.",
        "The alignment of packed softmax results: the values of softmax_layout '' stand in [heads, tokens] order.",
        "pse, prefix, padding_mask, sink and an external dropout_mask are not modelled.",
    ),
    ignores=("gen_mask_parallel", "sync"),
)
def npu_fusion_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    head_num: int,
    input_layout: str,
    atten_mask: torch.Tensor | None,
    scale: float,
    keep_prob: float,
    pre_tockens: int,
    next_tockens: int,
    inner_precise: int,
    actual_seq_qlen: list[int] | None,
    actual_seq_kvlen: list[int] | None,
    sparse_mode: int,
    softmax_layout: str,
    seed: int,
    offset: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int, int]:
    """``dropout(softmax(mask(scale * query @ key.T))) @ value``.

    Args:
        query: Heads and length as `input_layout` says; float16, bfloat16 or float32, one type for all three.
        key: As `query`, with a divisor of its heads (grouped-query attention).
        value: As `key`; the head size may be smaller.
        head_num: Heads of the query, at most 256.
        input_layout: BSH, SBH, BSND, BNSD, or TND for packed sequences.
        atten_mask: True hides. sparse_mode 0, 1: full size (``[S, S]``, or with batches and heads in front); 2 to 4:
            the 2048 x 2048 upper triangle without its diagonal, whatever the length.
        scale: Multiplies the scores.
        keep_prob: In (0, 1]; 1 is no dropout.
        pre_tockens: Width of the band to the left (modes 0, 4).
        next_tockens: Width of the band to the right (modes 0, 4).
        inner_precise: 2 allows queries that see nothing.
        actual_seq_qlen: For TND, running totals of the lengths of queries.
        actual_seq_kvlen: For TND, running totals of the lengths of keys.
        sparse_mode: 0 and 1 `atten_mask`; 2 causal from the upper left, 3 from the lower right, 4 band.
        softmax_layout: ``""``, or ``TND`` with that layout.
        seed: With dropout; 0 takes one from the device's generator.
        offset: Belongs to `seed`.

    Returns:
        Output, softmax maxima and sums (float32, ``[B, N, S, 8]`` or ``[T, N, 8]``), an empty tensor, and seed, offset
        and size of the dropout mask.
    """
    batch = _Batch.of(query, key, value, head_num, input_layout, actual_seq_qlen, actual_seq_kvlen)
    _check_softmax_layout(softmax_layout, input_layout)
    require(0 < keep_prob <= 1, f"keep_prob is {keep_prob}, allowed: above 0 up to 1")
    masks = MaskArguments(atten_mask, sparse_mode, pre_tockens, next_tockens, inner_precise)
    if keep_prob < 1 and seed == 0:
        seed, offset = random.reserve()
    parts = [part.forward() for part in batch.parts(masks, scale, keep_prob, seed, offset)]
    output = batch.join([part[0] for part in parts]).to(query.dtype)
    maximum = batch.join_rows([part[1] for part in parts], softmax_layout)
    total = batch.join_rows([part[2] for part in parts], softmax_layout)
    return output, maximum, total, query.new_empty(0), seed, offset, batch.scores()


@kernel(
    "npu_fusion_attention_grad",
    source=_SOURCE,
    assumes=("The gradient is formed from the output, maxima and sums that are handed in, as the device does.",),
    ignores=("gen_mask_parallel", "sync", "softmax_in"),
)
def npu_fusion_attention_grad(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dy: torch.Tensor,
    head_num: int,
    input_layout: str,
    atten_mask: torch.Tensor | None,
    softmax_max: torch.Tensor | None,
    softmax_sum: torch.Tensor | None,
    attention_in: torch.Tensor | None,
    scale_value: float,
    keep_prob: float,
    pre_tockens: int,
    next_tockens: int,
    inner_precise: int,
    seed: int,
    offset: int,
    numels: int,
    actual_seq_qlen: list[int] | None,
    actual_seq_kvlen: list[int] | None,
    sparse_mode: int,
    softmax_layout: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value, and two empty tensors (those of pse and sink).

    `dy` is the gradient of the output `attention_in`; `softmax_max`, `softmax_sum`, `seed`, `offset` and `numels` are
    results of the forward operator. The other arguments are those of :func:`npu_fusion_attention`.
    """
    batch = _Batch.of(query, key, value, head_num, input_layout, actual_seq_qlen, actual_seq_kvlen)
    _check_softmax_layout(softmax_layout, input_layout)
    require(0 < keep_prob <= 1, f"keep_prob is {keep_prob}, allowed: above 0 up to 1")
    if attention_in is None or softmax_max is None or softmax_sum is None:
        raise ConstraintError("attention_in, softmax_max and softmax_sum of the forward operator are needed")
    require_same_dtype(query=query, dy=dy, attention_in=attention_in)
    for name, tensor in (("dy", dy), ("attention_in", attention_in)):
        require_shape(name, tensor, batch.output_shape())
    for name, tensor in (("softmax_max", softmax_max), ("softmax_sum", softmax_sum)):
        require_dtype(name, tensor, (torch.float32,))
        require_shape(name, tensor, batch.rows_shape())
    require(
        keep_prob == 1 or numels == batch.scores(),
        f"numels is {numels}, needed with dropout: the {batch.scores()} of the forward operator",
    )
    masks = MaskArguments(atten_mask, sparse_mode, pre_tockens, next_tockens, inner_precise)
    handed = zip(
        batch.parts(masks, scale_value, keep_prob, seed, offset),
        batch.split_output(dy),
        batch.split_output(attention_in),
        batch.split_rows(softmax_max, softmax_layout),
        batch.split_rows(softmax_sum, softmax_layout),
        strict=True,
    )
    grads = [part.backward(grad, output, maximum, total) for part, grad, output, maximum, total in handed]
    grad_query, grad_key, grad_value = (batch.join([g[i] for g in grads]).to(query.dtype) for i in range(3))
    empty = query.new_empty(0)
    return grad_query, grad_key, grad_value, empty, empty.clone()


@dataclass(frozen=True)
class _Batch:
    """Queries, keys and values in their layout, and the way to and from ``[batch, heads, length, size]``."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    layout: str
    heads: int
    groups: int
    lengths: list[tuple[int, int]]  # of the packed sequences; empty for the other layouts

    @classmethod
    def of(
        cls,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        head_num: int,
        input_layout: str,
        actual_seq_qlen: list[int] | None,
        actual_seq_kvlen: list[int] | None,
    ) -> "_Batch":
        """Check every constraint on shapes and types."""
        require_choice("input_layout", input_layout, _LAYOUTS)
        require(0 < head_num <= _MOST_HEADS, f"head_num is {head_num}, allowed: 1 to {_MOST_HEADS}")
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            require_dtype(name, tensor)
            require_dim(name, tensor, 4 if len(input_layout) == 4 else 3)
            require(tensor.numel() > 0, f"{name} is empty {tuple(tensor.shape)}")
        require_same_dtype(query=query, key=key, value=value)
        size, groups = _head_size_and_groups(query, key, head_num, input_layout)
        value_size = _last(value, input_layout, groups)
        require(
            value_size <= size <= _LARGEST_HEAD,
            f"head sizes are {size} (query, key) and {value_size} (value), allowed: at most {_LARGEST_HEAD}, and that "
            "of value at most that of key",
        )
        require(
            head_num % groups == 0, f"query has {head_num} heads and key {groups}, needed: a multiple of those of key"
        )
        batch = cls(query, key, value, input_layout, head_num, groups, [])
        if input_layout == "TND":
            lengths = _lengths(query.shape[0], key.shape[0], actual_seq_qlen, actual_seq_kvlen)
            return cls(query, key, value, input_layout, head_num, groups, lengths)
        _check_lengths(batch, actual_seq_qlen, actual_seq_kvlen)
        return batch

    def parts(
        self, masks: MaskArguments, scale: float, keep_prob: float, seed: int, offset: int
    ) -> Iterator[Attention]:
        """One attention a packed sequence, or one for the whole batch."""
        stream = random.generator(seed, offset)
        for query, key, value, visible in self._inputs(masks):
            shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
            keep = random.keep_mask(shape, keep_prob, stream) if keep_prob < 1 else None
            yield Attention(query, key, value, scale, visible, keep, keep_prob)

    def scores(self) -> int:
        """Number of scores, which is the size of the dropout mask."""
        if self.layout == "TND":
            return self.heads * sum(queries * keys for queries, keys in self.lengths)
        query, key = self._to_heads(self.query, self.heads), self._to_heads(self.key, self.groups)
        return query.shape[:3].numel() * key.shape[2]

    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output: the query's, with the head size of the value."""
        size = _last(self.value, self.layout, self.groups)
        return (*self.query.shape[:-1], size if len(self.layout) == 4 or self.layout == "TND" else self.heads * size)

    def rows_shape(self) -> tuple[int, ...]:
        """Shape of softmax maxima and sums."""
        if self.layout == "TND":
            return (self.query.shape[0], self.heads, _LANES)
        batch, heads, length, _ = self._to_heads(self.query, self.heads).shape
        return (batch, heads, length, _LANES)

    def join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Results ``[batch, heads, length, size]`` in the layout of the inputs."""
        if self.layout == "TND":
            return torch.cat([part[0].transpose(0, 1) for part in parts])
        (part,) = parts
        if self.layout == "BNSD":
            return part
        if self.layout == "BSND":
            return part.transpose(1, 2).contiguous()
        return part.transpose(1, 2).flatten(2) if self.layout == "BSH" else part.permute(2, 0, 1, 3).flatten(2)

    def join_rows(self, parts: list[torch.Tensor], softmax_layout: str) -> torch.Tensor:
        """Maxima or sums ``[batch, heads, length]`` as the operator returns them."""
        if self.layout != "TND":
            return parts[0].float().unsqueeze(-1).repeat(1, 1, 1, _LANES)
        rows = torch.cat([part[0] for part in parts], 1).float()  # [heads, tokens]
        rows = rows.T if softmax_layout == "TND" else rows
        return rows.reshape(-1, 1).repeat(1, _LANES).view(self.rows_shape())

    def split_rows(self, rows: torch.Tensor, softmax_layout: str) -> list[torch.Tensor]:
        """The way back of :meth:`join_rows`."""
        if self.layout != "TND":
            return [rows[..., 0]]
        tokens, heads = self.query.shape[0], self.heads
        flat = rows.reshape(-1, _LANES)[:, 0]
        by_head = flat.view(tokens, heads).T if softmax_layout == "TND" else flat.view(heads, tokens)
        return [part.unsqueeze(0) for part in by_head.split(self._query_lengths(), 1)]

    def split_output(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The way back of :meth:`join` for the output or its gradient."""
        if self.layout != "TND":
            return [self._to_heads(tensor, self.heads)]
        return [part.transpose(0, 1).unsqueeze(0) for part in tensor.split(self._query_lengths())]

    def _inputs(self, masks: MaskArguments) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, Visible]]:
        if self.layout != "TND":
            query = self._to_heads(self.query, self.heads)
            key, value = self._to_heads(self.key, self.groups), self._to_heads(self.value, self.groups)
            visible = masks.visible(query.shape[0], self.heads, query.shape[2], key.shape[2])
            yield query, key, value, visible
            return
        longest = (max(self._query_lengths()), max(keys for _, keys in self.lengths))
        parts = zip(
            self.lengths,
            self.query.split(self._query_lengths()),
            self.key.split([keys for _, keys in self.lengths]),
            self.value.split([keys for _, keys in self.lengths]),
            strict=True,
        )
        for (queries, keys), *tensors in parts:
            query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in tensors)
            yield query, key, value, masks.visible_in_sequence(queries, keys, longest)

    def _query_lengths(self) -> list[int]:
        return [queries for queries, _ in self.lengths]

    def _to_heads(self, tensor: torch.Tensor, heads: int) -> torch.Tensor:
        if self.layout == "BNSD":
            return tensor
        if self.layout == "BSND":
            return tensor.transpose(1, 2)
        split = tensor.unflatten(2, (heads, -1))
        return split.transpose(1, 2) if self.layout == "BSH" else split.permute(1, 2, 0, 3)


def _head_size_and_groups(query: torch.Tensor, key: torch.Tensor, head_num: int, layout: str) -> tuple[int, int]:
    """Head size, and heads of the key."""
    if layout in ("BSH", "SBH"):
        hidden = query.shape[2]
        require(hidden % head_num == 0, f"query has hidden size {hidden}, needed: a multiple of head_num {head_num}")
        size = hidden // head_num
        require(key.shape[2] % size == 0, f"key has hidden size {key.shape[2]}, needed: a multiple of head size {size}")
        return size, key.shape[2] // size
    axis = {"BNSD": 1, "BSND": 2, "TND": 1}[layout]
    require(query.shape[axis] == head_num, f"query has {query.shape[axis]} heads, needed: head_num {head_num}")
    size = query.shape[-1]
    require(key.shape[-1] == size, f"key has head size {key.shape[-1]}, needed: that of query, {size}")
    return size, key.shape[axis]


def _last(value: torch.Tensor, layout: str, groups: int) -> int:
    """Head size of the value."""
    if layout not in ("BSH", "SBH"):
        return value.shape[-1]
    hidden = value.shape[2]
    require(hidden % groups == 0, f"value has hidden size {hidden}, needed: a multiple of {groups} heads")
    return hidden // groups


def _check_lengths(batch: _Batch, actual_seq_qlen: list[int] | None, actual_seq_kvlen: list[int] | None) -> None:
    """Batches of one length."""
    require(
        not actual_seq_qlen and not actual_seq_kvlen,
        f"actual_seq_qlen and actual_seq_kvlen are given with layout {batch.layout}, they belong to TND",
    )
    query, key = batch._to_heads(batch.query, batch.heads), batch._to_heads(batch.key, batch.groups)
    value = batch._to_heads(batch.value, batch.groups)
    require(query.shape[0] == key.shape[0], f"query has {query.shape[0]} batches and key {key.shape[0]}")
    require(
        key.shape[:3] == value.shape[:3],
        f"key has shape {tuple(batch.key.shape)} and value {tuple(batch.value.shape)}, allowed to differ: head size",
    )
    for name, tensor in (("query", query), ("key", key)):
        require(tensor.shape[2] <= _LONGEST, f"{name} has length {tensor.shape[2]}, allowed: at most {_LONGEST}")


def _lengths(
    queries: int, keys: int, actual_seq_qlen: list[int] | None, actual_seq_kvlen: list[int] | None
) -> list[tuple[int, int]]:
    """Lengths of packed sequences from running totals."""
    if not actual_seq_qlen or not actual_seq_kvlen:
        raise ConstraintError("actual_seq_qlen and actual_seq_kvlen are needed with layout TND")
    require(
        len(actual_seq_qlen) == len(actual_seq_kvlen) <= _MOST_SEQUENCES,
        f"actual_seq_qlen has {len(actual_seq_qlen)} and actual_seq_kvlen {len(actual_seq_kvlen)} sequences, needed: "
        f"as many, at most {_MOST_SEQUENCES}",
    )
    found = []
    for name, totals, tokens in (
        ("actual_seq_qlen", actual_seq_qlen, queries),
        ("actual_seq_kvlen", actual_seq_kvlen, keys),
    ):
        steps = [total - before for before, total in zip([0, *totals], totals, strict=False)]
        require(min(steps) >= 0, f"{name} falls, running totals are needed")
        require(totals[-1] == tokens <= _LONGEST, f"{name} ends at {totals[-1]}, needed: the {tokens} tokens")
        found.append(steps)
    return list(zip(*found, strict=True))


def _check_softmax_layout(softmax_layout: str, input_layout: str) -> None:
    require_choice("softmax_layout", softmax_layout, ("", "TND") if input_layout == "TND" else ("",))
