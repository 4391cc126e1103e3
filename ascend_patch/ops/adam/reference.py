"""Adam in plain PyTorch, tensor by tensor: the oracle for the other variants."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ascend_patch.ops.numerics import accumulation_dtype


@torch.no_grad()
def adam_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    adam_w_mode: bool = True,
    bias_correction: bool = True,
) -> None:
    """See :func:`ascend_patch.ops.adam.adam_step`."""
    beta1, beta2 = betas
    correction1 = 1.0 - beta1**step if bias_correction else 1.0
    correction2 = 1.0 - beta2**step if bias_correction else 1.0
    for param, grad, exp_avg, exp_avg_sq in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        dtype = accumulation_dtype(param.dtype)
        p, g = param.to(dtype), grad.to(dtype)
        if not adam_w_mode:
            g = g + weight_decay * p
        m = beta1 * exp_avg.to(dtype) + (1.0 - beta1) * g
        v = beta2 * exp_avg_sq.to(dtype) + (1.0 - beta2) * g * g
        update = (m / correction1) / ((v / correction2).sqrt() + eps)
        if adam_w_mode:
            update = update + weight_decay * p
        param.copy_(p - lr * update)
        exp_avg.copy_(m)
        exp_avg_sq.copy_(v)
