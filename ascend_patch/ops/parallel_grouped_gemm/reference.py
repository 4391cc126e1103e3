"""One all-to-all, then the grouped GEMM, or the other way round: the oracle for the other variants."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.ops.grouped_gemm.reference import grouped_gemm
from ascend_patch.ops.parallel_grouped_gemm.exchange import Exchange


def all_to_all_grouped_gemm(
    x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_grouped_gemm.all_to_all_grouped_gemm`."""
    by_rank = _AllToAll.apply(x, exchange.group, exchange.sent, exchange.received)
    by_expert = _transposed(by_rank, exchange.received)
    return grouped_gemm(by_expert, weight, exchange.rows_per_expert, weight_gradient)


def grouped_gemm_all_to_all(
    x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_grouped_gemm.grouped_gemm_all_to_all`."""
    by_expert = grouped_gemm(x, weight, exchange.rows_per_expert, weight_gradient)
    by_rank = _transposed(by_expert, [list(column) for column in zip(*exchange.received, strict=True)])
    return _AllToAll.apply(by_rank, exchange.group, exchange.received, exchange.sent)


class _AllToAll(torch.autograd.Function):
    """``sent[p]`` rows for each rank ``p`` -> ``received[p]`` rows from each; the gradient travels back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: dist.ProcessGroup, sent: list[list[int]], received: list[list[int]]
    ) -> Tensor:
        ctx.arguments = group, received, sent
        inputs, outputs = [sum(counts) for counts in sent], [sum(counts) for counts in received]
        y = x.new_empty(sum(outputs), x.shape[1])
        dist.all_to_all_single(y, x.contiguous(), outputs, inputs, group=group)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return _AllToAll.apply(grad_outputs[0], *ctx.arguments), None, None, None


def _transposed(x: Tensor, counts: list[list[int]]) -> Tensor:
    """Rows in groups ``[i][j]`` of ``counts[i][j]`` -> the same in groups ``[j][i]``."""
    columns = len(counts[0])
    groups = x.split([count for row in counts for count in row])
    return torch.cat([group for j in range(columns) for group in groups[j::columns]])
