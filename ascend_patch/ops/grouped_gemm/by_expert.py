"""Grouped products one expert at a time, into slices of one result.

oneDNN, which multiplies bfloat16 on the host, generates code for every shape that it meets. That takes as long as a
product of a hundred rows, and no two batches give an expert the same number of rows. What is generated stays, between
the blocks of malloc, which then has no room where it had some: a large result takes fresh pages from the kernel in each
layer, and the process grows. So such products have one of a few heights. The rows beyond an expert's are the next
one's, whose product replaces their results; or zeros, where there are no more rows, and where the product sums over
rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

_LEAST_STEP, _STEPS = 4, 16
"""Heights are powers of two up to the first, then its multiples; of these, so many up to the next power of two."""


def multiply(x: Tensor, matrices: Tensor, counts: Sequence[int], out: Tensor) -> None:
    """``out[e] = x[e] @ matrices[e]``.

    Args:
        x: ``[T, K]``, the rows in the order of the experts.
        matrices: ``[E, K, N]``, same dtype.
        counts: of rows, by expert; they add up to ``T``.
        out: ``[T, N]``, contiguous, same dtype.
    """
    start = 0
    for expert, count in enumerate(counts):
        if not count:  # in a step of generation most have none
            continue
        rows = filled(x, start, count)
        end, stop = start + count, start + rows.shape[0]
        if stop <= x.shape[0]:
            torch.mm(rows, matrices[expert], out=out[start:stop])
        else:
            out[start:end] = rows.mm(matrices[expert])[:count]
        start = end


def filled(x: Tensor, start: int, count: int) -> Tensor:
    """An expert's ``count`` rows of ``x [T, K]``, and others or zeros behind them up to one of the heights."""
    stop = start + _height(count, x)
    rows = x[start:stop]
    missing = stop - x.shape[0]
    return rows if missing <= 0 else pad(rows, (0, 0, 0, missing))


def weight_gradient(grad_y: Tensor, x: Tensor, counts: Sequence[int]) -> Tensor:
    """``grad_y[e].T @ x[e]`` of ``grad_y [T, N]`` and ``x [T, K]``: ``[E, N, K]``, zero where an expert has no rows."""
    gradient = x.new_empty(len(counts), grad_y.shape[1], x.shape[1])
    for out, grad_rows, rows in zip(gradient, grad_y.split(counts), x.split(counts), strict=True):
        if missing := _height(len(rows), x) - len(rows):
            grad_rows, rows = pad(grad_rows, (0, 0, 0, missing)), pad(rows, (0, 0, 0, missing))
        torch.mm(grad_rows.t(), rows, out=out)
    return gradient


def _height(rows: int, x: Tensor) -> int:
    """The rows that a product has for those of an expert."""
    if not rows or x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return rows
    power = 1 << (rows - 1).bit_length()
    if power <= _LEAST_STEP:
        return power
    step = max(_LEAST_STEP, power // (2 * _STEPS))
    return -(-rows // step) * step
