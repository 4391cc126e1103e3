"""Experts in pieces: the rows of one piece's experts are on their way while those of another's are multiplied.

Each piece has an all-to-all of its own; together they carry what one for all rows would. No expert is divided: its
products are those of a grouped GEMM of all of them. A piece of one expert arrives in its place, so that what upstream
copies to order rows by expert when they are there is copied before they leave. With one expert a rank there is one
piece, and nothing to overlap but the weight gradient of the first layer.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.ops.function import apply
from ascend_patch.ops.grouped_gemm import grouped_product
from ascend_patch.ops.parallel_grouped_gemm.exchange import Exchange
from ascend_patch.ops.parallel_grouped_gemm.passes import AllToAllGroupedGemm, GroupedGemmAllToAll, Products

_PIECES = 4


def all_to_all_grouped_gemm(
    x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_grouped_gemm.all_to_all_grouped_gemm`."""
    return apply(AllToAllGroupedGemm, x, weight, exchange, weight_gradient, _PRODUCTS)


def grouped_gemm_all_to_all(
    x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_grouped_gemm.grouped_gemm_all_to_all`."""
    return apply(GroupedGemmAllToAll, x, weight, exchange, weight_gradient, _PRODUCTS)


def _exchange_matmul(a: Tensor, b: Tensor, exchange: Exchange) -> tuple[Tensor, Tensor]:
    pieces, counts = _pieces(exchange.experts), exchange.rows_per_expert
    arrived, product = a.new_empty(sum(counts), a.shape[1]), a.new_empty(sum(counts), b.shape[2])
    sizes = [sum(counts[piece]) for piece in pieces]
    parts = _cut(a, [[sum(row[piece]) for piece in pieces] for row in exchange.sent])
    on_the_way = []
    for piece, part, place in zip(pieces, zip(*parts, strict=True), arrived.split(sizes), strict=True):
        rows = torch.cat(part) if len(pieces) > 1 else a
        by_rank = torch.empty_like(place) if len(counts[piece]) > 1 else place
        handle = _all_to_all(by_rank, rows, exchange.received, exchange.sent, piece, exchange.group)
        on_the_way.append((piece, rows, by_rank, place, handle))
    for (piece, _, by_rank, place, handle), out in zip(on_the_way, product.split(sizes), strict=True):
        handle.wait()
        if by_rank is not place:
            torch.cat(_turned(_cut(by_rank, [row[piece] for row in exchange.received])), out=place)
        grouped_product(place, b[piece], counts[piece], out)
    return product, arrived


def _matmul_exchange(a: Tensor, b: Tensor, exchange: Exchange) -> Callable[[], Tensor]:
    pieces, counts = _pieces(exchange.experts), exchange.rows_per_expert
    sizes = [sum(counts[piece]) for piece in pieces]
    products = a.new_empty(a.shape[0], b.shape[2]).split(sizes)
    on_the_way = []
    for piece, rows, product in zip(pieces, a.split(sizes), products, strict=True):
        grouped_product(rows, b[piece], counts[piece], product)
        if len(counts[piece]) > 1:
            by_expert = list(zip(*(row[piece] for row in exchange.received), strict=True))
            product = torch.cat(_turned(_cut(product, by_expert)))
        per_rank = [sum(row[piece]) for row in exchange.sent]
        back = a.new_empty(sum(per_rank), b.shape[2])
        handle = _all_to_all(back, product, exchange.sent, exchange.received, piece, exchange.group)
        on_the_way.append((product, back, per_rank, handle))

    def finish() -> Tensor:
        for *_, handle in on_the_way:
            handle.wait()
        if len(pieces) == 1:
            return on_the_way[0][1]
        return torch.cat(_turned([back.split(per_rank) for _, back, per_rank, _ in on_the_way]))

    return finish


def _all_to_all(
    out: Tensor,
    rows: Tensor,
    arriving: list[list[int]],
    leaving: list[list[int]],
    piece: slice,
    group: dist.ProcessGroup,
) -> Any:
    """Start to send the rows of one piece of the experts of each rank. Returns what to wait for."""
    arriving_sizes, leaving_sizes = ([sum(row[piece]) for row in counts] for counts in (arriving, leaving))
    return dist.all_to_all_single(out, rows, arriving_sizes, leaving_sizes, group=group, async_op=True)


def _cut(x: Tensor, counts: Sequence[Sequence[int]]) -> list[list[Tensor]]:
    """Rows in groups ``[i][j]`` of ``counts[i][j]``, as views."""
    parts = iter(x.split([count for row in counts for count in row]))
    return [[next(parts) for _ in row] for row in counts]


def _turned(groups: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Groups ``[i][j]``, all those of the first ``j`` first."""
    return list(chain.from_iterable(zip(*groups, strict=True)))


def _pieces(experts: int) -> list[slice]:
    """At most ``_PIECES`` slices of the experts, none of them empty."""
    step = -(-experts // _PIECES)
    return [slice(start, min(start + step, experts)) for start in range(0, experts, step)]


_PRODUCTS = Products(_exchange_matmul, _matmul_exchange)
