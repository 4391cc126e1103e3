"""Linear layers of sequence parallel ranks: a product and the communication before or after it as one operation.

Rows are split between the ranks of a group outside of these layers, and the weight between them within.
"""

from torch import Tensor
from torch.distributed import ProcessGroup

from ascend_patch.ops.registry import run


def all_gather_linear(x: Tensor, weight: Tensor, group: ProcessGroup, weight_gradient: Tensor | None = None) -> Tensor:
    """``all_gather(x) @ weight.T``: a column parallel layer.

    Args:
        x: ``[T, K]``, floating point, this rank's rows; as many on every rank.
        weight: ``[N, K]``, same dtype, this rank's columns of the result.
        group: the ``P`` ranks.
        weight_gradient: ``[N, K]``, any floating point dtype, or None. Each backward pass adds the gradient of
            ``weight`` to it, and autograd gets none for ``weight``.

    Returns:
        ``[P * T, N]`` in the dtype of ``x``, the rows in the order of the ranks.

    The gradient of ``x`` is summed over the ranks, by a reduce-scatter. Only this rank's rows of ``x`` are kept for
    the backward pass, which gathers them again if ``weight`` has a gradient. The bytes sent are those of an
    all-gather or reduce-scatter of the whole. Sums within a rank run in float32 (float64 for float64) and are rounded
    once, those over the ranks in the dtype of ``x``; the error relative to the largest entry stays below 1e-5
    (float32) and 2e-2 (bfloat16).

    Raises:
        ValueError: the shapes or dtypes do not fit.
    """
    _check("all_gather_linear", x, weight, weight_gradient)
    return run("parallel_linear", "all_gather_linear", x, weight, group, weight_gradient)


def linear_reduce_scatter(
    x: Tensor, weight: Tensor, group: ProcessGroup, weight_gradient: Tensor | None = None
) -> Tensor:
    """``reduce_scatter(x @ weight.T)``: a row parallel layer.

    Args:
        x: ``[P * T, K]``, floating point, this rank's columns of every row, the rows in the order of the ranks.
        weight: ``[N, K]``, same dtype.
        group, weight_gradient: as for :func:`all_gather_linear`.

    Returns:
        ``[T, N]`` in the dtype of ``x``: this rank's rows of the sum over the ranks.

    The backward pass gathers the gradient of the result. Bytes and errors are those of :func:`all_gather_linear`.

    Raises:
        ValueError: the shapes or dtypes do not fit, or the rows cannot be shared equally.
    """
    _check("linear_reduce_scatter", x, weight, weight_gradient)
    if x.shape[0] % group.size():
        raise ValueError(
            f"linear_reduce_scatter: x has {x.shape[0]} rows for {group.size()} ranks; they must be a multiple of that."
        )
    return run("parallel_linear", "linear_reduce_scatter", x, weight, group, weight_gradient)


def _check(function: str, x: Tensor, weight: Tensor, weight_gradient: Tensor | None) -> None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"{function}: x is {x.dtype} {tuple(x.shape)}, weight is {weight.dtype} {tuple(weight.shape)}; "
            "allowed are [rows, K] and [N, K] of the same dtype."
        )
    if weight_gradient is not None and weight_gradient.shape != weight.shape:
        raise ValueError(
            f"{function}: weight_gradient has shape {tuple(weight_gradient.shape)}; it must be that of weight, "
            f"{tuple(weight.shape)}."
        )
