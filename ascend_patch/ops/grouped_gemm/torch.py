"""Grouped GEMM as one PyTorch call a product: forward, input gradient and weight gradient make three.

``torch._grouped_mm`` runs all experts in one kernel where the hardware has one and in one dispatched operator
elsewhere. What it does not take (float64, rows that are not a multiple of 16 bytes, old GPUs) goes expert by
expert into slices of one result, which costs the same arithmetic and more launches.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def grouped_gemm(x: Tensor, weight: Tensor, tokens_per_expert: list[int]) -> Tensor:
    """See :func:`ascend_patch.ops.grouped_gemm.grouped_gemm`."""
    return _GroupedGemm.apply(x, weight, tokens_per_expert)


class _GroupedGemm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ends = torch.tensor(counts).cumsum(0)
        ctx.save_for_backward(x, weight)
        ctx.ends = ends
        if _kernel_accepts(x, weight):
            return torch._grouped_mm(x, weight.transpose(1, 2), _offsets(ends, x))
        y = x.new_empty(x.shape[0], weight.shape[1])
        for expert, rows in _rows(ends):
            torch.mm(x[rows], weight[expert].t(), out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        # Also a guard: the kernel rejects the expanded gradients that sum() and mean() send.
        grad_y = grad_y.contiguous()
        grad_x = _input_gradient(grad_y, weight, ctx.ends) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(grad_y, x, weight, ctx.ends) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None


def _input_gradient(grad_y: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    if _kernel_accepts(grad_y, weight):
        return torch._grouped_mm(grad_y, weight, _offsets(ends, grad_y))
    grad_x = grad_y.new_empty(grad_y.shape[0], weight.shape[2])
    for expert, rows in _rows(ends):
        torch.mm(grad_y[rows], weight[expert], out=grad_x[rows])
    return grad_x


def _weight_gradient(grad_y: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    if _kernel_accepts(grad_y, weight):
        return torch._grouped_mm(grad_y.t(), x, _offsets(ends, x))
    grad_weight = torch.empty_like(weight)
    for expert, rows in _rows(ends):
        torch.mm(grad_y[rows].t(), x[rows], out=grad_weight[expert])
    return grad_weight


def _kernel_accepts(rows: Tensor, weight: Tensor) -> bool:
    """What ``torch._grouped_mm`` of torch 2.9 checks before it runs."""
    if any(size * weight.element_size() % 16 for size in weight.shape[1:]):
        return False
    if rows.device.type == "cpu":
        return rows.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if rows.device.type == "cuda":
        return rows.dtype == torch.bfloat16 and torch.cuda.get_device_capability(rows.device) == (9, 0)
    return False


def _offsets(ends: Tensor, like: Tensor) -> Tensor:
    return ends.to(device=like.device, dtype=torch.int32)


def _rows(ends: Tensor) -> list[tuple[int, slice]]:
    return [(expert, slice(*span)) for expert, span in enumerate(pairwise([0, *ends.tolist()]))]
