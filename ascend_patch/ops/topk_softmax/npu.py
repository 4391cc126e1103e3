"""Top-k softmax routing on Ascend: one operator chooses the experts and takes their softmax.

``npu_moe_gating_top_k_softmax_v2`` does either order (``renorm`` 1: top-k, then softmax, as Mixtral), without a
gradient; that is ours. Its results are ``[T, k]`` with int32 indices. Megatron wants them as ``[T, E]``: comparing
the indices with each expert's number does that element by element, where a scatter would need wider indices and two
tensors of zeros.
"""

from functools import lru_cache
from typing import Any

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.function import apply
from ascend_patch.ops.registry import Unsupported

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_LARGEST_TOPK = 1024

_SOFTMAX_FIRST, _TOPK_FIRST = 0, 1
"""``renorm``."""


def topk_softmax(logits: Tensor, topk: int, pre_softmax: bool = False) -> tuple[Tensor, Tensor]:
    """See :func:`ascend_patch.ops.topk_softmax.topk_softmax`."""
    _check(logits, topk)
    return apply(_SoftmaxThenTopk if pre_softmax else _TopkThenSoftmax, logits, topk)


def balancing_scores(logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """See :func:`ascend_patch.ops.topk_softmax.balancing_scores`."""
    _check(logits, topk)
    return apply(_BalancingScores, logits, topk)


def _check(logits: Tensor, topk: int) -> None:
    if logits.dtype not in _DTYPES:
        raise Unsupported(f"{logits.dtype}; npu_moe_gating_top_k_softmax_v2 takes bfloat16, float16 and float32")
    if topk > _LARGEST_TOPK:
        raise Unsupported(f"top-k of {topk}; npu_moe_gating_top_k_softmax_v2 takes up to {_LARGEST_TOPK}")
    if logits.shape[0] == 0:
        raise Unsupported("no tokens; npu_moe_gating_top_k_softmax_v2 takes at least one")


class _TopkThenSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        # In float32: rounded to bfloat16 the k probabilities of a token no longer add up to 1, which its gradient
        # takes for granted.
        probs, experts, _ = torch_npu.npu_moe_gating_top_k_softmax_v2(logits.float(), k=topk, renorm=_TOPK_FIRST)
        chosen = _one_hot(experts, logits.shape[1])
        softmax = (chosen * probs.unsqueeze(-1)).sum(dim=1)
        routing_map = chosen.any(dim=1)
        ctx.save_for_backward(softmax)
        ctx.mark_non_differentiable(routing_map)
        ctx.set_materialize_grads(False)  # zeros for the map otherwise
        return softmax.to(logits.dtype), routing_map

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_probs: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if grad_probs is None:
            return None, None
        (softmax,) = ctx.saved_tensors
        # The softmax is zero outside the chosen experts, so what grad_probs holds there does not count.
        return _softmax_gradient(grad_probs.float(), softmax).to(grad_probs.dtype), None


class _SoftmaxThenTopk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        softmax, routing_map = _softmax_and_map(logits, topk)
        ctx.save_for_backward(softmax, routing_map)
        ctx.mark_non_differentiable(routing_map)
        ctx.set_materialize_grads(False)  # zeros for the map otherwise
        return (softmax * routing_map).to(logits.dtype), routing_map

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_probs: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        if grad_probs is None:
            return None, None
        softmax, routing_map = ctx.saved_tensors
        return _softmax_gradient(grad_probs.float() * routing_map, softmax).to(grad_probs.dtype), None


class _BalancingScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        softmax, routing_map = _softmax_and_map(logits, topk)
        ctx.save_for_backward(softmax)
        ctx.mark_non_differentiable(routing_map)
        ctx.set_materialize_grads(False)  # zeros for the map otherwise
        ctx.dtype = logits.dtype
        return routing_map, softmax

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, grad_scores: Tensor | None) -> tuple[Tensor | None, None]:
        if grad_scores is None:
            return None, None
        (softmax,) = ctx.saved_tensors
        return _softmax_gradient(grad_scores, softmax).to(ctx.dtype), None


def _softmax_and_map(logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Softmax over all experts in float32, and where its ``topk`` largest are; each ``[T, E]``."""
    _, experts, softmax = torch_npu.npu_moe_gating_top_k_softmax_v2(
        logits, k=topk, renorm=_SOFTMAX_FIRST, output_softmax=True
    )
    return softmax, _one_hot(experts, logits.shape[1]).any(dim=1)


def _one_hot(experts: Tensor, num_experts: int) -> Tensor:
    """``[T, k]`` -> ``[T, k, E]``, True where the number of the expert stands."""
    return experts.unsqueeze(-1) == _numbers(num_experts, experts.device)


@lru_cache(maxsize=8)
def _numbers(num_experts: int, device: torch.device) -> Tensor:
    return torch.arange(num_experts, dtype=torch.int32, device=device)


def _softmax_gradient(grad: Tensor, softmax: Tensor) -> Tensor:
    return torch._softmax_backward_data(grad, softmax, -1, softmax.dtype)
