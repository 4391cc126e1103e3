"""The layouts of npu_fusion_attention: constraints on shapes, and the way to and from heads of equal length."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ascend_sim.errors import ConstraintError, require
from ascend_sim.kernels import random
from ascend_sim.kernels.attention_core import Attention
from ascend_sim.kernels.attention_mask import MaskArguments, Visible
from ascend_sim.kernels.checks import require_choice, require_dim, require_dtype, require_same_dtype

_LAYOUTS = ("BSH", "SBH", "BSND", "BNSD", "TND")
_LARGEST_HEAD = 768
_MOST_HEADS = 256
_LONGEST = 1 << 20
_MOST_SEQUENCES = 2048
_LANES = 8  # softmax maximum and sum are repeated to one 32-byte block


@dataclass(frozen=True)
class AttentionBatch:
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
    ) -> "AttentionBatch":
        """Check every constraint on shapes and types."""
        require_choice("input_layout", input_layout, _LAYOUTS)
        require(0 < head_num <= _MOST_HEADS, f"head_num is {head_num}, allowed: 1 to {_MOST_HEADS}")
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            require_dtype(name, tensor)
            require_dim(name, tensor, 4 if len(input_layout) == 4 else 3)
            require(tensor.numel() > 0, f"{name} is empty {tuple(tensor.shape)}")
        require_same_dtype(query=query, key=key, value=value)
        require(
            key.shape[:-1] == value.shape[:-1],
            f"key has shape {tuple(key.shape)} and value {tuple(value.shape)}, allowed to differ: the last dimension",
        )
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
        batch, heads, queries, _ = self.rows_shape()
        return batch * heads * queries * self.longest()[1]

    def longest(self) -> tuple[int, int]:
        """Length of the longest queries and of the longest keys."""
        if self.layout == "TND":
            return max(self._query_lengths()), max(keys for _, keys in self.lengths)
        axis = {"BSH": 1, "SBH": 0, "BSND": 1, "BNSD": 2}[self.layout]
        return self.query.shape[axis], self.key.shape[axis]

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
        parts = zip(
            self.lengths,
            self.query.split(self._query_lengths()),
            self.key.split([keys for _, keys in self.lengths]),
            self.value.split([keys for _, keys in self.lengths]),
            strict=True,
        )
        for (queries, keys), *tensors in parts:
            query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in tensors)
            yield query, key, value, masks.visible_in_sequence(queries, keys, self.longest())

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


def _check_lengths(
    batch: AttentionBatch, actual_seq_qlen: list[int] | None, actual_seq_kvlen: list[int] | None
) -> None:
    """Batches of one length."""
    require(
        not actual_seq_qlen and not actual_seq_kvlen,
        f"actual_seq_qlen and actual_seq_kvlen are given with layout {batch.layout}, they belong to TND",
    )
    axis = 1 if batch.layout == "SBH" else 0
    batches, others = batch.query.shape[axis], batch.key.shape[axis]
    require(batches == others, f"query has {batches} batches and key {others}, needed: as many")
    for name, length in zip(("query", "key"), batch.longest(), strict=True):
        require(length <= _LONGEST, f"{name} has length {length}, allowed: at most {_LONGEST}")


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
