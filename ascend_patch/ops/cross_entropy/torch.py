"""Vocabulary parallel cross entropy that never holds a wide copy of the logits.

A float32 image of ``[s * b, V]`` logits and the passes over it are what the plain formulation costs. Here
blocks of rows small enough for the cache are widened, normalised and stored back in the dtype of the logits;
the backward pass scales them by the incoming gradient. What would suffer from that rounding, the entry of the
target, is kept in full width.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.blocks import row_blocks
from ascend_patch.ops.numerics import accumulation_dtype


def cross_entropy(
    vocab_parallel_logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
) -> Tensor:
    """See :func:`ascend_patch.ops.cross_entropy.cross_entropy`."""
    logits = vocab_parallel_logits.reshape(-1, vocab_parallel_logits.shape[-1])
    loss = _CrossEntropy.apply(logits, target.reshape(-1), label_smoothing, group, vocab_start)
    return loss.view(target.shape)


class _CrossEntropy(torch.autograd.Function):
    """Over ``[rows, V / tp]`` logits and ``[rows]`` targets; per-row vectors have the accumulation dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        label_smoothing: float,
        group: dist.ProcessGroup | None,
        vocab_start: int,
    ) -> Tensor:
        rows, local_size = logits.shape
        dtype = accumulation_dtype(logits.dtype)
        local_target = target - vocab_start
        held = (local_target >= 0) & (local_target < local_size)
        local_target = local_target.where(held, 0).unsqueeze(-1)

        softmax = torch.empty_like(logits)
        row_max, log_sum, predicted, total = torch.zeros(4, rows, dtype=dtype, device=logits.device)
        for block in row_blocks(logits):
            wide = logits[block].to(dtype)
            block_softmax = torch.softmax(wide, dim=-1)
            softmax[block] = block_softmax
            torch.amax(wide, dim=-1, out=row_max[block])
            # The largest entry of a softmax is exp(0) / sum(exp(x - max)).
            torch.amax(block_softmax, dim=-1, out=log_sum[block]).log_().neg_()
            predicted[block] = wide.gather(-1, local_target[block]).squeeze(-1)
            if label_smoothing > 0.0:
                torch.sum(wide, dim=-1, out=total[block])

        vocab_size = local_size
        if group is not None:
            vocab_size *= dist.get_world_size(group)
            local_max = row_max.clone()
            dist.all_reduce(row_max, op=dist.ReduceOp.MAX, group=group)
            log_sum += local_max - row_max
        # From here on all logits are relative to the largest of the whole row.
        predicted = (predicted - row_max).where(held, 0.0)
        total -= local_size * row_max
        share = None  # this rank's part of the whole row's sum of exponentials
        if group is not None:
            sums = torch.stack([log_sum.exp(), predicted, total])
            dist.all_reduce(sums, group=group)
            share = log_sum.exp() / sums[0]
            log_sum, predicted, total = sums[0].log(), sums[1], sums[2]

        loss = nll = log_sum - predicted
        smoothing = 0.0
        if label_smoothing > 0.0:
            # Weights 1 - a on the target and a / (V - 1) elsewhere are 1 - s on the target and s / V everywhere.
            smoothing = label_smoothing * vocab_size / (vocab_size - 1)
            loss = (1.0 - smoothing) * nll - smoothing * (total / vocab_size - log_sum)
        ctx.save_for_backward(softmax, local_target, held, nll, share)
        ctx.smoothing, ctx.uniform = smoothing, smoothing / vocab_size
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        softmax, local_target, held, nll, share = ctx.saved_tensors
        scale = grad_loss if share is None else grad_loss * share
        at_target = (torch.expm1(-nll) + (ctx.smoothing - ctx.uniform)) * grad_loss
        grad_logits = torch.empty_like(softmax)
        for block in row_blocks(softmax):
            # Widened first: PyTorch multiplies a bfloat16 matrix by a float32 column far more slowly.
            grad = softmax[block].to(nll.dtype, copy=True).mul_(scale[block].unsqueeze(-1))
            if ctx.uniform:
                grad -= (ctx.uniform * grad_loss[block]).unsqueeze(-1)
            index = local_target[block]
            exact = at_target[block].unsqueeze(-1).where(held[block].unsqueeze(-1), grad.gather(-1, index))
            grad_logits[block] = grad.scatter_(-1, index, exact)
        return grad_logits, None, None, None, None
