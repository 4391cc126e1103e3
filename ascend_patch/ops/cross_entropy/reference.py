"""Vocabulary parallel cross entropy in plain PyTorch: the oracle for the other variants."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.ops.numerics import accumulation_dtype


def cross_entropy(
    vocab_parallel_logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
) -> Tensor:
    """See :func:`ascend_patch.ops.cross_entropy.cross_entropy`."""
    logits = vocab_parallel_logits.to(accumulation_dtype(vocab_parallel_logits.dtype))
    row_max = logits.detach().amax(dim=-1)
    if group is not None:
        dist.all_reduce(row_max, op=dist.ReduceOp.MAX, group=group)
    shifted = logits - row_max.unsqueeze(-1)
    log_sum_exp = _sum_over(group, shifted.exp().sum(dim=-1)).log()

    local_size = logits.shape[-1]
    local_target = target - vocab_start
    held = (local_target >= 0) & (local_target < local_size)
    local_target = local_target.where(held, 0)
    predicted = shifted.gather(-1, local_target.unsqueeze(-1)).squeeze(-1).where(held, 0.0)
    loss = log_sum_exp - _sum_over(group, predicted)
    if label_smoothing == 0.0:
        return loss

    # (1 - a) on the target and a / (V - 1) on the others equals (1 - s) on the target and s / V on all.
    vocab_size = local_size * (dist.get_world_size(group) if group is not None else 1)
    s = label_smoothing * vocab_size / (vocab_size - 1)
    mean_log_prob = _sum_over(group, shifted.sum(dim=-1)) / vocab_size - log_sum_exp
    return (1.0 - s) * loss - s * mean_log_prob


class _Sum(torch.autograd.Function):
    """Sum over ranks of a value that every rank then uses alike, hence the identity as backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def _sum_over(group: dist.ProcessGroup | None, x: Tensor) -> Tensor:
    return x if group is None else _Sum.apply(x, group)
