"""Grouped GEMM as one PyTorch call a product: forward, input gradient and weight gradient make three.

``torch._grouped_mm`` runs all experts in one kernel where the hardware has one and in one dispatched operator
elsewhere. What it does not take (float64, rows that are not a multiple of 16 bytes, old GPUs) goes expert by
expert into slices of one result, which costs the same arithmetic and more launches.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.function import apply
from ascend_patch.ops.grouped_gemm.reference import add_weight_gradient

__all__ = ["add_weight_gradient", "grouped_gemm", "grouped_product", "grouped_weight_gradient"]


def grouped_gemm(
    x: Tensor, weight: Tensor, tokens_per_expert: list[int], weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_gemm`."""
    return apply(_GroupedGemm, x, weight, tokens_per_expert, weight_gradient)


def grouped_product(x: Tensor, matrices: Tensor, counts: list[int], out: Tensor) -> None:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_product`. Without a copy where it is not one kernel."""
    if len(counts) > 1 and x.device.type != "cpu" and _kernel_accepts(x, matrices.shape[1:]):
        out.copy_(torch._grouped_mm(x, matrices, _offsets(counts, x.device)))
        return
    for matrix, rows in zip(matrices, _slices(counts), strict=True):
        if rows.start < rows.stop:
            torch.mm(x[rows], matrix, out=out[rows])


def grouped_weight_gradient(
    x: Tensor, grad_y: Tensor, counts: list[int], weight_gradient: Tensor | None = None
) -> Tensor | None:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_weight_gradient`."""
    accepted = _kernel_accepts(x, (x.shape[1], grad_y.shape[1]))
    gradient = _weight_gradient(grad_y, x, _slices(counts), _offsets(counts, x.device) if accepted else None)
    if weight_gradient is None:
        return gradient
    weight_gradient.add_(gradient)
    return None


class _GroupedGemm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: list[int], weight_gradient: Tensor | None) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        offsets = _offsets(counts, x.device) if _kernel_accepts(weight, weight.shape[1:]) else None
        ctx.save_for_backward(x, weight, offsets)
        ctx.weight_gradient = weight_gradient
        ctx.experts = experts = _slices(counts)
        # On the host the kernel is a loop, too, and does not pass over experts without tokens: in a step of generation
        # most have none.
        if offsets is not None and (all(counts) or x.device.type != "cpu"):
            return torch._grouped_mm(x, weight.transpose(1, 2), offsets)
        y = x.new_empty(x.shape[0], weight.shape[1])
        for expert, rows in enumerate(experts):
            if counts[expert]:
                torch.mm(x[rows], weight[expert].t(), out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, offsets = ctx.saved_tensors
        # Contiguous also because the kernel rejects the expanded gradients of sum() and mean().
        grad_y = grad_y.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(grad_y, weight, ctx.experts, offsets)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(grad_y, x, ctx.experts, offsets)
            if ctx.weight_gradient is not None:
                ctx.weight_gradient.add_(grad_weight)
                grad_weight = None
        return grad_x, grad_weight, None, None


def _input_gradient(grad_y: Tensor, weight: Tensor, experts: list[slice], offsets: Tensor | None) -> Tensor:
    if offsets is not None:
        return torch._grouped_mm(grad_y, weight, offsets)
    grad_x = grad_y.new_empty(grad_y.shape[0], weight.shape[2])
    for expert, rows in enumerate(experts):
        torch.mm(grad_y[rows], weight[expert], out=grad_x[rows])
    return grad_x


def _weight_gradient(grad_y: Tensor, x: Tensor, experts: list[slice], offsets: Tensor | None) -> Tensor:
    if offsets is not None:
        return torch._grouped_mm(grad_y.t(), x, offsets)
    grad_weight = x.new_empty(len(experts), grad_y.shape[1], x.shape[1])
    for expert, rows in enumerate(experts):
        torch.mm(grad_y[rows].t(), x[rows], out=grad_weight[expert])
    return grad_weight


def _slices(counts: list[int]) -> list[slice]:
    """The rows of each expert."""
    return [slice(*span) for span in pairwise([0, *accumulate(counts)])]


def _offsets(counts: list[int], device: torch.device) -> Tensor:
    """Where the rows of each expert end, as the kernel takes it."""
    return torch.tensor(list(accumulate(counts)), dtype=torch.int32).to(device, non_blocking=True)


def _kernel_accepts(t: Tensor, sizes: Sequence[int]) -> bool:
    """What ``torch._grouped_mm`` of torch 2.9 checks before it runs: of matrices of these sizes, on the place of ``t``.

    Both operands have the dtype of ``t``.
    """
    if any(size * t.element_size() % 16 for size in sizes):
        return False
    if t.device.type == "cpu":
        return t.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if t.device.type == "cuda":
        return t.dtype == torch.bfloat16 and torch.cuda.get_device_capability(t.device) == (9, 0)
    return False
