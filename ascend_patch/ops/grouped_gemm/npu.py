"""Grouped GEMM as one Ascend operator a product: forward, input gradient and weight gradient make three.

``npu_grouped_matmul`` has no autograd formula in torch_npu, so this one is ours. The ends of the groups are a
tensor on the device: the operator's other form, a list on the host, cannot group along K, which the weight
gradient needs. Their copy to the device is asynchronous and shared by the two layers of an expert, forward and
backward. ``npu_grouped_matmul_add_`` sums a weight gradient in place, in float32, also that of a single group.
Operators: aclnnGroupedMatmulV4/V5 (group types 0 and 2) and aclnnGroupedMatmulAdd of CANN's ops-transformer.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.function import apply
from ascend_patch.ops.registry import Unsupported

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_INNER_LIMIT = 65536
"""The last dimension of each operand must be smaller; transposed, that is its other dimension in memory."""
_SMALLEST = 2
"""The operator tells a transposed view by its strides, which those of a single row or column do not show."""
_MOST_GROUPS = 1024

_ROWS, _REDUCTION = 0, 2
"""``group_type``: the groups divide the rows of the result, or what is summed over."""


def grouped_gemm(
    x: Tensor, weight: Tensor, tokens_per_expert: list[int], weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_gemm`."""
    _require(x.dtype, weight.shape)
    return apply(_GroupedGemm, x, weight, tokens_per_expert, weight_gradient)


def grouped_product(x: Tensor, matrices: Tensor, counts: list[int], out: Tensor) -> None:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_product`. npu_grouped_matmul makes its result itself."""
    _require(x.dtype, matrices.shape)
    if len(counts) == 1:
        torch.mm(x, matrices[0], out=out)
    elif x.shape[0]:
        out.copy_(_matmul(x, matrices, _ends(tuple(counts), x.device), _ROWS))


def grouped_weight_gradient(
    x: Tensor, grad_y: Tensor, counts: list[int], weight_gradient: Tensor | None = None
) -> Tensor | None:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_weight_gradient`."""
    shape = (len(counts), grad_y.shape[1], x.shape[1])
    _require(x.dtype, shape)
    if x.shape[0]:
        return _weight_gradient(grad_y, x, _ends(tuple(counts), x.device), weight_gradient)
    return x.new_zeros(shape) if weight_gradient is None else None


def add_weight_gradient(x: Tensor, grad_y: Tensor, weight_gradient: Tensor) -> None:
    """See :func:`ascend_patch.ops.grouped_gemm.add_weight_gradient`. One group, where the operator takes it."""
    if not _adds_in_place(x, weight_gradient):
        weight_gradient.add_(grad_y.t().mm(x))
    elif x.shape[0]:
        torch_npu.npu_grouped_matmul_add_(weight_gradient, grad_y, x, _ends((x.shape[0],), x.device))


class _GroupedGemm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: list[int], weight_gradient: Tensor | None) -> Tensor:
        # The operators take transposed matrices as views, but x only as it is.
        x, weight = x.contiguous(), weight.contiguous()
        ends = _ends(tuple(counts), x.device) if x.shape[0] else None
        ctx.save_for_backward(x, weight, ends)
        ctx.weight_gradient = weight_gradient
        if ends is None:
            return x.new_empty(0, weight.shape[1])
        return _matmul(x, weight.transpose(1, 2), ends, _ROWS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, ends = ctx.saved_tensors
        grad_x = grad_weight = None
        if ends is None:
            if ctx.weight_gradient is None:
                grad_weight = torch.zeros_like(weight)
            return torch.empty_like(x), grad_weight, None, None
        grad_y = grad_y.contiguous()
        if ctx.needs_input_grad[0]:
            grad_x = _matmul(grad_y, weight, ends, _ROWS)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(grad_y, x, ends, ctx.weight_gradient)
        return grad_x, grad_weight, None, None


def _require(dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Check the dtype, and the shape of the experts' matrices."""
    if dtype not in _DTYPES:
        raise Unsupported(f"{dtype}; npu_grouped_matmul takes bfloat16, float16 and float32")
    if not all(_SMALLEST <= size < _INNER_LIMIT for size in shape[1:]):
        raise Unsupported(
            f"a weight of {tuple(shape)}; npu_grouped_matmul takes sizes of {_SMALLEST} to {_INNER_LIMIT - 1}"
        )
    if shape[0] > _MOST_GROUPS:
        raise Unsupported(f"{shape[0]} experts; npu_grouped_matmul takes up to {_MOST_GROUPS}")


def _weight_gradient(grad_y: Tensor, x: Tensor, ends: Tensor, accumulated: Tensor | None) -> Tensor | None:
    """``grad_y[e].T @ x[e]`` for every expert, ``[E, N, K]``; None if it went into ``accumulated``."""
    if accumulated is not None and _adds_in_place(x, accumulated):
        # The operator adds to one matrix: that of all experts, one above the other.
        torch_npu.npu_grouped_matmul_add_(accumulated.view(-1, x.shape[1]), grad_y, x, ends)
        return None
    gradient = _matmul(grad_y.t(), x, ends, _REDUCTION)
    if accumulated is None:
        return gradient
    accumulated.add_(gradient)
    return None


def _adds_in_place(x: Tensor, accumulated: Tensor) -> bool:
    """Whether npu_grouped_matmul_add_ sums products of the dtype of ``x`` there."""
    halves = (torch.bfloat16, torch.float16)
    sizes = all(_SMALLEST <= size < _INNER_LIMIT for size in accumulated.shape[-2:])
    return sizes and x.dtype in halves and accumulated.dtype == torch.float32 and accumulated.is_contiguous()


def _matmul(a: Tensor, b: Tensor, ends: Tensor, group_type: int) -> Tensor:
    (product,) = torch_npu.npu_grouped_matmul([a], [b], group_list=ends, split_item=3, group_type=group_type)
    return product


@lru_cache(maxsize=32)
def _ends(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Where the rows of each expert end, ``[E]`` int64. From memory that is not pinned the copy would wait."""
    with torch.inference_mode(False):  # a later backward pass is to save it
        ends = torch.tensor(list(accumulate(counts)), dtype=torch.int64, pin_memory=True)
        return ends.to(device, non_blocking=True)
