"""Grouped matrix multiplication: the rows of each expert times that expert's weight.

And the weight gradient of a layer without groups, summed where the gradients of all micro-batches are.
"""

from collections.abc import Sequence

from torch import Tensor

from ascend_patch.ops.registry import run


def grouped_gemm(
    x: Tensor, weight: Tensor, tokens_per_expert: Sequence[int] | Tensor, weight_gradient: Tensor | None = None
) -> Tensor:
    """``y[e] = x[e] @ weight[e].T`` for every expert ``e``, where ``x[e]`` is the rows of that expert.

    Args:
        x: ``[T, K]``, floating point, the rows in the order of the experts.
        weight: ``[E, N, K]``, same dtype.
        tokens_per_expert: ``E`` non-negative integers that add up to ``T``, as a list or an integer tensor on
            the CPU. A device tensor is accepted but costs a synchronisation.
        weight_gradient: ``[E, N, K]``, contiguous, in any floating point dtype, or None. Each backward pass adds
            the gradient of ``weight`` to it, and autograd gets none for ``weight``: where the hardware can, the
            products are summed in this tensor, without one of their own.

    Returns:
        ``[T, N]`` in the dtype of ``x``.

    Gradients flow to ``x`` and ``weight`` and are deterministic; an expert without tokens gets a zero
    gradient. Sums run in float32 (float64 for float64) and are rounded once; the error relative to the
    largest entry stays below 1e-5 (float32) and 1e-2 (bfloat16).

    Raises:
        ValueError: the shapes or the counts do not fit.
    """
    counts = tokens_per_expert.tolist() if isinstance(tokens_per_expert, Tensor) else list(tokens_per_expert)
    if x.dim() != 2 or weight.dim() != 3 or x.shape[1] != weight.shape[2]:
        raise ValueError(
            f"grouped_gemm: x has shape {tuple(x.shape)}, weight has shape {tuple(weight.shape)}; "
            "allowed are [T, K] and [E, N, K]."
        )
    if x.dtype != weight.dtype:
        raise ValueError(f"grouped_gemm: x is {x.dtype}, weight is {weight.dtype}; they must have the same dtype.")
    if len(counts) != weight.shape[0] or sum(counts) != x.shape[0] or min(counts, default=0) < 0:
        raise ValueError(
            f"grouped_gemm: tokens_per_expert is {counts} for {weight.shape[0]} experts and {x.shape[0]} tokens; "
            "it must have one count per expert, none negative, that add up to the number of tokens."
        )
    check_weight_gradient("grouped_gemm", weight, weight_gradient)
    return run("grouped_gemm", "grouped_gemm", x, weight, counts, weight_gradient)


def check_weight_gradient(function: str, weight: Tensor, weight_gradient: Tensor | None) -> None:
    """Raise ValueError in the name of ``function`` if the gradient of ``weight`` cannot be added to the other."""
    if weight_gradient is not None and (weight_gradient.shape != weight.shape or not weight_gradient.is_contiguous()):
        raise ValueError(
            f"{function}: weight_gradient has shape {tuple(weight_gradient.shape)} and strides "
            f"{weight_gradient.stride()}; it must be contiguous and of the shape of weight, {tuple(weight.shape)}."
        )


def grouped_product(x: Tensor, matrices: Tensor, counts: Sequence[int], out: Tensor) -> None:
    """``out[e] = x[e] @ matrices[e]`` for every expert ``e``, for passes that are written by hand: without gradients.

    Args:
        x: ``[T, K]``, contiguous, floating point, the rows in the order of the experts.
        matrices: ``[E, K, N]``, same dtype, contiguous or the transposed view of such a tensor.
        counts: ``E`` non-negative integers that add up to ``T``.
        out: ``[T, N]``, contiguous, same dtype; written.

    The products and their error are those of :func:`grouped_gemm`.
    """
    run("grouped_gemm", "grouped_product", x, matrices, counts, out)


def grouped_weight_gradient(
    x: Tensor, grad_y: Tensor, counts: Sequence[int], weight_gradient: Tensor | None = None
) -> Tensor | None:
    """``grad_y[e].T @ x[e]`` for every expert ``e``: what the backward pass of :func:`grouped_gemm` computes.

    Args:
        x: ``[T, K]``, contiguous, floating point, the rows in the order of the experts.
        grad_y: ``[T, N]``, contiguous, same dtype.
        counts: ``E`` non-negative integers that add up to ``T``.
        weight_gradient: ``[E, N, K]`` to add it to, or None.

    Returns:
        ``[E, N, K]`` in the dtype of ``x``; None if it went into ``weight_gradient``.
    """
    return run("grouped_gemm", "grouped_weight_gradient", x, grad_y, counts, weight_gradient)


def add_weight_gradient(x: Tensor, grad_y: Tensor, weight_gradient: Tensor) -> None:
    """``weight_gradient += grad_y.T @ x``, for a layer ``y = x @ weight.T``.

    Args:
        x: ``[T, K]``, floating point.
        grad_y: ``[T, N]``, same dtype.
        weight_gradient: ``[N, K]``, of any floating point dtype; changed in place.

    Products of bfloat16 are summed in float32, and in float32 ``weight_gradient`` where the hardware can; otherwise
    their sum is rounded to bfloat16 first. Deterministic.

    Raises:
        ValueError: the shapes do not fit.
    """
    if x.dim() != 2 or grad_y.dim() != 2 or weight_gradient.shape != (grad_y.shape[1], x.shape[1]):
        raise ValueError(
            f"add_weight_gradient: x has shape {tuple(x.shape)}, grad_y {tuple(grad_y.shape)}, weight_gradient "
            f"{tuple(weight_gradient.shape)}; allowed are [T, K], [T, N] and [N, K]."
        )
    run("grouped_gemm", "add_weight_gradient", x, grad_y, weight_gradient)
