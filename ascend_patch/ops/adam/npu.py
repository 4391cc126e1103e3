"""Adam through ``npu_apply_adam_w``, one launch for as many tensors as lie next to each other.

Tensors that follow on each other in memory, parameters, both averages and gradients alike, are one long tensor to the
operator. :class:`ascend_patch.modules.adam.FusedAdam` lays its state out for that. Gradients lie where Megatron's
buffers have them; where only they are scattered and short, they are gathered first, which takes one launch for all.

Bias correction is folded into the learning rate and ``eps``, in the host's float64: the operator would take
``1 - beta ** step`` from float32 powers, which for ``beta2 = 0.999`` is off by 3e-5 at the first step. No value is
read from the device. Formula: Ascend/op-plugin, test/test_custom_ops/test_npu_apply_adam_w.py.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch_npu  # noqa: F401  registers the operators
from torch import Tensor

from ascend_patch.ops.adam import reference
from ascend_patch.ops.neighbours import adjacent, joined, runs, span

JOINS_NEIGHBOURS = True
"""See :func:`ascend_patch.ops.adam.joins_neighbours`."""

_SHORT = 2**16
"""Elements below which launches cost more than copying a gradient does."""


class _Quad(NamedTuple):
    """What belongs to one parameter; flat, contiguous float32."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    grad: Tensor


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
    quads, others = [], []
    for tensors in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if all(t.device.type == "npu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors):
            param, grad, exp_avg, exp_avg_sq = (t.detach().view(-1) for t in tensors)
            if param.numel():
                quads.append(_Quad(param, exp_avg, exp_avg_sq, grad))
        else:
            others.append(tensors)

    correction1, correction2 = (1.0 - beta**step if bias_correction else 1.0 for beta in betas)
    # lr * (m / c1) / (sqrt(v / c2) + eps) = (lr * sqrt(c2) / c1) * m / (sqrt(v) + eps * sqrt(c2))
    ratio = math.sqrt(correction2) / correction1
    for quad in _joined(quads):
        grad = quad.grad
        if weight_decay and not adam_w_mode:
            grad = torch.add(grad, quad.param, alpha=weight_decay)
        torch.ops.npu.npu_apply_adam_w.out(
            0.0,  # of beta1 and beta2, the powers before this step: the operator is to correct nothing
            0.0,
            lr * ratio,
            weight_decay / ratio if adam_w_mode else 0.0,
            *betas,
            eps * math.sqrt(correction2),
            grad,
            None,
            False,
            False,
            out=[quad.param, quad.exp_avg, quad.exp_avg_sq],
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


def _joined(quads: list[_Quad]) -> Iterator[_Quad]:
    """The same elements in as few quads as memory allows."""
    segments = [_Quad(*row) for row in joined(quads)]
    for run in runs(segments, _follows_but_for_its_gradient):
        if len(run) == 1:
            yield run[0]
        else:
            params, exp_avgs, exp_avg_sqs, grads = zip(*run, strict=True)
            yield _Quad(span(params), span(exp_avgs), span(exp_avg_sqs), torch.cat(grads))


def _follows_but_for_its_gradient(before: _Quad, quad: _Quad) -> bool:
    short = max(before.grad.numel(), quad.grad.numel()) < _SHORT
    return short and all(map(adjacent, before[:3], quad[:3]))
