"""Top-k softmax routing with a backward pass of one fused kernel."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.function import apply
from ascend_patch.ops.numerics import accumulation_dtype
from ascend_patch.ops.topk_softmax.reference import balancing_scores

__all__ = ["balancing_scores", "topk_softmax"]


def topk_softmax(logits: Tensor, topk: int, pre_softmax: bool = False) -> tuple[Tensor, Tensor]:
    """See :func:`ascend_patch.ops.topk_softmax.topk_softmax`."""
    return apply(_TopkSoftmax, logits, topk, pre_softmax)


class _TopkSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, topk: int, pre_softmax: bool) -> tuple[Tensor, Tensor]:
        wide = logits.to(accumulation_dtype(logits.dtype))
        if pre_softmax:
            softmax = wide.softmax(dim=-1)
            probs, experts = softmax.topk(topk, dim=-1)
            routing_probs = torch.zeros_like(wide).scatter_(1, experts, probs)
        else:
            scores, experts = logits.topk(topk, dim=-1)
            softmax = torch.zeros_like(wide).scatter_(1, experts, scores.softmax(dim=-1, dtype=wide.dtype))
            routing_probs = softmax
        routing_map = torch.zeros_like(wide, dtype=torch.bool).scatter_(1, experts, True)
        ctx.save_for_backward(softmax, routing_map)
        ctx.mark_non_differentiable(routing_map)
        ctx.set_materialize_grads(False)  # zeros for the map otherwise
        return routing_probs.to(logits.dtype, copy=True), routing_map

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_probs: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        if grad_probs is None:
            return None, None, None
        softmax, routing_map = ctx.saved_tensors
        # Without pre_softmax the softmax is zero outside the chosen experts, as if their logits were -inf.
        grad = grad_probs.to(softmax.dtype).where(routing_map, 0.0)
        grad_logits = torch._softmax_backward_data(grad, softmax, -1, softmax.dtype)
        return grad_logits.to(grad_probs.dtype), None, None
