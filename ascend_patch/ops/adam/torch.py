"""Adam through PyTorch's fused kernels, which read and write every tensor once."""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ascend_patch.ops.adam import reference

_DEVICES = ("cpu", "cuda")
"""Where PyTorch itself has the kernels."""


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
    fused: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, ...]]] = defaultdict(list)
    others: list[tuple[Tensor, ...]] = []
    for tensors in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if _kernel_accepts(tensors):
            fused[tensors[0].device, tensors[0].dtype].append(tensors)
        else:
            others.append(tensors)

    kernel = torch._fused_adamw_ if adam_w_mode else torch._fused_adam_
    for (device, _), group in fused.items():
        # The kernel divides by 1 - beta ** step, which is 1 after infinitely many steps.
        kernel_step = torch.tensor(float(step) if bias_correction else math.inf, device=device)
        p, g, m, v = (list(column) for column in zip(*group, strict=True))
        kernel(
            p,
            g,
            m,
            v,
            [],
            [kernel_step] * len(p),
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
    if others:
        p, g, m, v = (list(column) for column in zip(*others, strict=True))
        reference.adam_step(
            p,
            g,
            m,
            v,
            step=step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            adam_w_mode=adam_w_mode,
            bias_correction=bias_correction,
        )


def _kernel_accepts(tensors: tuple[Tensor, ...]) -> bool:
    """The kernel walks four contiguous arrays of one dtype in step, and rounds bfloat16 in between."""
    first = tensors[0]
    return (
        first.device.type in _DEVICES
        and first.dtype in (torch.float32, torch.float64)
        and all(t.device == first.device and t.dtype == first.dtype and t.is_contiguous() for t in tensors)
    )
