"""Products in pieces: the rows of one piece are on their way while those of another are multiplied.

A piece is the same part of every rank's rows, so that each collective is one of equal parts, and together they carry
what one for all rows would. A rank multiplies its own rows first: they wait for nobody.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.ops.function import apply
from ascend_patch.ops.parallel_linear.passes import (
    AllGatherLinear,
    LinearReduceScatter,
    Products,
    all_gather,
    reduce_scatter,
)

_PIECES = 2


def all_gather_linear(
    x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_linear.all_gather_linear`."""
    return apply(AllGatherLinear, x, weight, group, weight_gradient, _PRODUCTS)


def linear_reduce_scatter(
    x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_linear.linear_reduce_scatter`."""
    return apply(LinearReduceScatter, x, weight, group, weight_gradient, _PRODUCTS)


def _gather_matmul(a: Tensor, b: Tensor, group: dist.ProcessGroup, keep: bool) -> tuple[Tensor, Tensor | None]:
    size, rank, rows = group.size(), group.rank(), a.shape[0]
    product = a.new_empty(size, rows, b.shape[1])
    whole = a.new_empty(size, *a.shape) if keep else None
    on_the_way = [(piece, *all_gather(a[piece], group)) for piece in _pieces(rows)]
    torch.mm(a, b, out=product[rank])
    for piece, gathered, handle in on_the_way:
        handle.wait()
        parts = gathered.view(size, -1, a.shape[1])
        for other in range(size):
            if other != rank:
                torch.mm(parts[other], b, out=product[other, piece])
        if whole is not None:
            whole[:, piece] = parts
    return product.flatten(0, 1), None if whole is None else whole.flatten(0, 1)


def _matmul_scatter(a: Tensor, b: Tensor, group: dist.ProcessGroup) -> Tensor:
    size, rows = group.size(), a.shape[0] // group.size()
    parts = a.view(size, rows, a.shape[1])
    result = a.new_empty(rows, b.shape[1])
    on_the_way = []
    for piece in _pieces(rows):
        out = result[piece]
        partial = a.new_empty(size, *out.shape)
        for other in range(size):
            torch.mm(parts[other, piece], b, out=partial[other])
        on_the_way.append((partial, reduce_scatter(partial.flatten(0, 1), group, out)[1]))
    for _, handle in on_the_way:
        handle.wait()
    return result


def _pieces(rows: int) -> Iterator[slice]:
    """At most ``_PIECES`` slices, none of them empty."""
    step = -(-rows // _PIECES)
    for start in range(0, rows, max(step, 1)):
        yield slice(start, min(start + step, rows))


_PRODUCTS = Products(_gather_matmul, _matmul_scatter)
