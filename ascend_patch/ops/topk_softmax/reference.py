"""Top-k softmax routing in plain PyTorch: the oracle for the other variants."""

import torch
from torch import Tensor

from ascend_patch.ops.numerics import accumulation_dtype


def topk_softmax(logits: Tensor, topk: int, pre_softmax: bool = False) -> tuple[Tensor, Tensor]:
    """See :func:`ascend_patch.ops.topk_softmax.topk_softmax`."""
    dtype = accumulation_dtype(logits.dtype)
    if pre_softmax:
        probs, experts = logits.softmax(dim=-1, dtype=dtype).topk(topk, dim=-1)
    else:
        scores, experts = logits.topk(topk, dim=-1)
        probs = scores.softmax(dim=-1, dtype=dtype)
    routing_probs = torch.zeros_like(logits).scatter(1, experts, probs.to(logits.dtype))
    routing_map = torch.zeros_like(logits, dtype=torch.bool).scatter(1, experts, True)
    return routing_probs, routing_map


def balancing_scores(logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """See :func:`ascend_patch.ops.topk_softmax.balancing_scores`."""
    scores = logits.softmax(dim=-1, dtype=accumulation_dtype(logits.dtype))
    experts = scores.topk(topk, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, experts, True), scores
