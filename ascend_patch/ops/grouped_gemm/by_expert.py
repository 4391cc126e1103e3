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

_STEPS = 16
"""Heights up to it are powers of two, then its multiples, then so many between a power of two and the next."""


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
        end, stop = start + count, start + _height(count, x)
        if stop <= x.shape[0]:
            torch.mm(x[start:stop], matrices[expert], out=out[start:stop])
        else:
            out[start:end] = pad(x[start:end], (0, 0, 0, stop - end)).mm(matrices[expert])[:count]
        start = end


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
    if rows <= _STEPS:
        return 1 << (rows - 1).bit_length()
    step = max(_STEPS, (1 << (rows - 1).bit_length()) // (2 * _STEPS))
    return -(-rows // step) * step
