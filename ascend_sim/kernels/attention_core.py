"""Attention of one batch and its gradient, one block of queries at a time. Layout: batch, heads, length, size."""

from collections.abc import Iterator

import torch

from ascend_sim.errors import require
from ascend_sim.kernels.attention_mask import Visible
from ascend_sim.kernels.checks import wide

_BLOCK = 256  # queries at a time: keys outside of the band are skipped, and no length x length tensor is kept


class Attention:
    """Softmax attention of fixed queries, keys and values.

    Args:
        query: ``[batch, heads, queries, size]``.
        key: ``[batch, groups, keys, size]``; heads are a multiple of groups.
        value: ``[batch, groups, keys, value size]``.
        scale: Multiplies the scores.
        visible: Which keys a query sees.
        keep: Bool ``[batch, heads, queries, keys]``, what dropout keeps, or None.
        keep_prob: Probability that `keep` was drawn with.
    """

    def __init__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        visible: Visible,
        keep: torch.Tensor | None = None,
        keep_prob: float = 1.0,
    ) -> None:
        self._heads = query.shape[1]
        self._queries, self._keys = query.shape[2], key.shape[2]
        self._groups = key.shape[1]
        self._query, self._key, self._value = self._group(wide(query)), wide(key), wide(value)
        self._scale, self._visible = scale, visible
        self._keep, self._keep_prob = keep, keep_prob

    def forward(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output ``[batch, heads, queries, value size]``, row maxima and row sums ``[batch, heads, queries]``.

        Raises:
            ConstraintError: A query sees no key where the operator does not provide for that.
        """
        rows = self._query.shape[:4]
        maximum, total = self._query.new_empty(rows), self._query.new_empty(rows)
        output = self._query.new_empty(*rows, self._value.shape[-1])
        for block in self._blocks():
            inside = slice(*block[0])
            results = self._forward_block(*block)
            output[:, :, :, inside], maximum[:, :, :, inside], total[:, :, :, inside] = results
        return self._ungroup(output), self._ungroup(maximum), self._ungroup(total)

    def backward(
        self, grad: torch.Tensor, output: torch.Tensor, maximum: torch.Tensor, total: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of query, key and value, from what :meth:`forward` returned."""
        gradient = self._group(wide(grad))
        delta = (gradient * self._group(wide(output))).sum(-1, keepdim=True)
        maximum, total = self._group(maximum).unsqueeze(-1), self._group(total).unsqueeze(-1)
        grad_query = torch.zeros_like(self._query)
        grad_key, grad_value = torch.zeros_like(self._key), torch.zeros_like(self._value)
        for rows, columns in self._blocks():
            block, inside = slice(*rows), slice(*columns)
            scores, _ = self._scores(rows, columns)
            probability = (scores - maximum[:, :, :, block]).exp_().div_(total[:, :, :, block].clamp_min(1e-37))
            grad_rows = gradient[:, :, :, block]
            grad_probability = (grad_rows.flatten(2, 3) @ self._value[:, :, inside].mT).view_as(probability)
            dropped, factor = probability, self._dropout_factor(rows, columns)
            if factor is not None:
                grad_probability, dropped = grad_probability * factor, probability * factor
            grad_value[:, :, inside] += dropped.flatten(2, 3).mT @ grad_rows.flatten(2, 3)
            grad_scores = probability * (grad_probability - delta[:, :, :, block]) * self._scale
            query_rows = self._query[:, :, :, block]
            grad_query[:, :, :, block] = (grad_scores.flatten(2, 3) @ self._key[:, :, inside]).view_as(query_rows)
            grad_key[:, :, inside] += grad_scores.flatten(2, 3).mT @ query_rows.flatten(2, 3)
        return self._ungroup(grad_query), grad_key, grad_value

    def _forward_block(
        self, rows: tuple[int, int], columns: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores, empty = self._scores(rows, columns)
        require(
            self._visible.empty_rows or not empty,
            f"a query of rows {rows[0]} to {rows[1] - 1} sees no key, which this mode does not allow",
        )
        maximum = scores.amax(-1) if columns[1] > columns[0] else scores.new_full(scores.shape[:-1], float("-inf"))
        maximum = maximum.masked_fill_(maximum == float("-inf"), 0.0)
        weights = (scores - maximum.unsqueeze(-1)).exp_()
        total = weights.sum(-1)
        weights = weights / total.clamp_min(1e-37).unsqueeze(-1)
        if (factor := self._dropout_factor(rows, columns)) is not None:
            weights = weights * factor
        output = weights.flatten(2, 3) @ self._value[:, :, slice(*columns)]
        return output.unflatten(2, weights.shape[2:4]), maximum, total

    def _scores(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[torch.Tensor, bool]:
        """Scaled scores ``[batch, groups, heads of a group, rows, columns]``, -inf where hidden; any row all hidden."""
        query = self._query[:, :, :, slice(*rows)]
        scores = query.flatten(2, 3) @ self._key[:, :, slice(*columns)].mT
        scores = scores.unflatten(2, query.shape[2:4]).mul_(self._scale)
        hidden = self._visible.hidden_block(rows, columns)
        if columns[0] == columns[1]:
            return scores, True
        if hidden is None:
            return scores, False
        return scores.masked_fill_(self._spread(hidden), float("-inf")), bool(hidden.all(-1).any())

    def _dropout_factor(self, rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor | None:
        """0 or 1 / keep_prob for each score of a block; None without dropout."""
        if self._keep is None:
            return None
        block = self._keep[:, :, slice(*rows), slice(*columns)]
        return self._group(block) / self._keep_prob

    def _blocks(self) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        for start in range(0, self._queries, _BLOCK):
            stop = min(start + _BLOCK, self._queries)
            yield (start, stop), self._visible.keys(start, stop, self._keys)

    def _group(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(1, (self._groups, self._heads // self._groups))

    @staticmethod
    def _ungroup(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten(1, 2)

    def _spread(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[1 or batch, 1 or heads, …]`` to the grouped form."""
        return hidden.unsqueeze(2) if hidden.shape[1] == 1 else self._group(hidden)
