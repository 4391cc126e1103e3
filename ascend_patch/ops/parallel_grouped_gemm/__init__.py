"""Linear layers of the experts of expert parallel ranks: a grouped GEMM and the all-to-all before or after it as one.

A token's row travels to the rank of its expert, and what the expert makes of it travels back. Which rows go where is
an :class:`Exchange`, one for both ways.
"""

from torch import Tensor

from ascend_patch.ops.grouped_gemm import check_weight_gradient
from ascend_patch.ops.parallel_grouped_gemm.exchange import Exchange
from ascend_patch.ops.registry import run

__all__ = ["Exchange", "all_to_all_grouped_gemm", "grouped_gemm_all_to_all"]


def all_to_all_grouped_gemm(
    x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None = None
) -> Tensor:
    """Rows to their experts, and ``y[e] = x[e] @ weight[e].T`` of what has arrived for expert ``e``.

    Args:
        x: ``[S, K]``, floating point, this rank's rows: by rank that they go to, then by that rank's expert.
        weight: ``[E, N, K]``, same dtype, this rank's experts.
        exchange: of the ``P`` ranks; ``S`` is the sum of ``exchange.sent``.
        weight_gradient: ``[E, N, K]``, contiguous, any floating point dtype, or None. Each backward pass adds the
            gradient of ``weight`` to it, and autograd gets none for ``weight``.

    Returns:
        ``[R, N]`` in the dtype of ``x``, by expert, then by the rank that the row is from; ``R`` is the sum of
        ``exchange.received``.

    An expert without rows gets a zero gradient, and a rank may send or receive nothing. What arrived is kept for the
    backward pass; the bytes sent are those of one all-to-all of ``x``, and of its gradient. The products are those of
    ``grouped_gemm``, and have its error.

    Raises:
        ValueError: the shapes, the dtypes or the counts do not fit.
    """
    _check("all_to_all_grouped_gemm", x, weight, exchange, weight_gradient, exchange.sent)
    return run("parallel_grouped_gemm", "all_to_all_grouped_gemm", x, weight, exchange, weight_gradient)


def grouped_gemm_all_to_all(
    x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None = None
) -> Tensor:
    """``y[e] = x[e] @ weight[e].T`` for every expert ``e``, and the rows back to the ranks that they came from.

    Args:
        x: ``[R, K]``, floating point, by expert, then by the rank that the row is from.
        weight: ``[E, N, K]``, same dtype.
        exchange, weight_gradient: as for :func:`all_to_all_grouped_gemm`.

    Returns:
        ``[S, N]`` in the dtype of ``x``, in the order of the rows that this rank had sent.

    Empty experts, bytes and errors are those of :func:`all_to_all_grouped_gemm`; ``x`` is kept for the backward pass.

    Raises:
        ValueError: the shapes, the dtypes or the counts do not fit.
    """
    _check("grouped_gemm_all_to_all", x, weight, exchange, weight_gradient, exchange.received)
    return run("parallel_grouped_gemm", "grouped_gemm_all_to_all", x, weight, exchange, weight_gradient)


def _check(
    function: str, x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None, counts: list
) -> None:
    if x.dim() != 2 or weight.dim() != 3 or x.shape[1] != weight.shape[2] or x.dtype != weight.dtype:
        raise ValueError(
            f"{function}: x is {x.dtype} {tuple(x.shape)}, weight is {weight.dtype} {tuple(weight.shape)}; "
            "allowed are [rows, K] and [E, N, K] of the same dtype."
        )
    rows = sum(map(sum, counts))
    if weight.shape[0] != exchange.experts or x.shape[0] != rows:
        raise ValueError(
            f"{function}: {x.shape[0]} rows and {weight.shape[0]} experts; the exchange is of {rows} rows and "
            f"{exchange.experts} experts on this rank."
        )
    check_weight_gradient(function, weight, weight_gradient)
