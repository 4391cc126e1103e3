"""Cross entropy through ``npu_cross_entropy_loss``, for a whole vocabulary and for one split between ranks.

The operator returns the loss in the dtype of the logits, so float16 and bfloat16 logits are widened first: per token
losses rounded to bfloat16 are off by up to 0.4 %. What is kept for the backward pass are the log-probabilities,
4 bytes a logit, of which upstream's formulation keeps 12 beside its other copies.

With the vocabulary split, each rank runs the operator on its part, as if that were all. The ranks exchange two numbers
a token, once: the log of their part's sum of exponentials and, from the rank that holds it, the target's logit.
Upstream reduces three times.

Constraints: torch_npu's documentation of npu_cross_entropy_loss (Ascend/op-plugin, docs/zh/custom_APIs).
"""

from typing import Any

import torch
import torch.distributed as dist
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.ascend import require_tensors
from ascend_patch.ops.registry import Unsupported

_OPERATOR = "npu_cross_entropy_loss"
_MOST_ROWS = 200_000


def cross_entropy(
    vocab_parallel_logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
) -> Tensor:
    """See :func:`ascend_patch.ops.cross_entropy.cross_entropy`."""
    require_tensors(_OPERATOR, vocab_parallel_logits)
    rows, local_size = target.numel(), vocab_parallel_logits.shape[-1]
    if label_smoothing > 0.0:
        raise Unsupported(f"label smoothing; {_OPERATOR} has no gradient with it")
    if not 0 < rows <= _MOST_ROWS:
        raise Unsupported(f"no token or more than {_MOST_ROWS}; {_OPERATOR} takes neither")
    logits = vocab_parallel_logits.reshape(rows, local_size).float()
    local_target = target.reshape(rows) - vocab_start if vocab_start else target.reshape(rows)
    if group is None:
        # A target outside of the vocabulary must not reach the operator; its loss is masked by the caller.
        loss = torch_npu.npu_cross_entropy_loss(logits, local_target.clamp(0, local_size - 1), reduction="none")[0]
    else:
        loss = _VocabParallel.apply(logits, local_target, group)
    return loss.view(target.shape)


class _VocabParallel(torch.autograd.Function):
    """Over float32 ``[rows, V / tp]`` logits and ``[rows]`` targets counted from this rank's first token."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, local_target: Tensor, group: dist.ProcessGroup) -> Tensor:
        held_target = local_target.clamp(0, logits.shape[-1] - 1)
        is_held = held_target == local_target
        local_loss, log_probs, _, _ = torch_npu.npu_cross_entropy_loss(logits, held_target, reduction="none")
        predicted = logits.gather(-1, held_target.unsqueeze(-1)).squeeze(-1)
        local_log_sum = local_loss + predicted
        mine = torch.stack([local_log_sum, predicted * is_held])
        everyones = mine.new_empty(dist.get_world_size(group), *mine.shape)
        dist.all_gather_into_tensor(everyones, mine, group=group)
        log_sum = everyones[:, 0].logsumexp(dim=0)
        ctx.save_for_backward(log_probs, held_target, is_held, (local_log_sum - log_sum).exp_())
        return log_sum - everyones[:, 1].sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        log_probs, held_target, is_held, share = ctx.saved_tensors
        # d = share * softmax - (target is held here). The operator gives share * (softmax - target).
        scale = grad_loss * share
        grad = torch.ops.npu.npu_cross_entropy_loss_backward(scale, log_probs, held_target, reduction="none")
        missing = (scale - grad_loss * is_held).unsqueeze(-1)
        return grad.scatter_add_(-1, held_target.unsqueeze(-1), missing), None, None
