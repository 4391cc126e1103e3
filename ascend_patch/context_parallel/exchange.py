"""Collectives along the first dimension whose gradient is the opposite collective, and messages round a ring."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.numerics import accumulation_dtype


def all_to_all(t: Tensor, group: dist.ProcessGroup) -> Tensor:
    """``t[i]`` goes to rank ``i``; what comes from rank ``i`` is ``[i]`` of the result."""
    return _AllToAll.apply(t, group)


def all_gather(t: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Every rank's ``t``, of equal shape, one after the other. Gradients are summed in float32."""
    return _AllGather.apply(t, group)


class PassedOn:
    """Tensors on their way to the next rank of the group, and the previous rank's on their way here.

    Args:
        tensors: contiguous; not to be written to before :meth:`wait`.
    """

    def __init__(self, tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
        following = dist.get_global_rank(group, (group.rank() + 1) % group.size())
        previous = dist.get_global_rank(group, (group.rank() - 1) % group.size())
        self._sent = tensors  # alive until they have left
        self._received = [torch.empty_like(t) for t in tensors]
        sends = [dist.P2POp(dist.isend, t, following, group) for t in tensors]
        receives = [dist.P2POp(dist.irecv, t, previous, group) for t in self._received]
        self._works = dist.batch_isend_irecv(sends + receives)

    def wait(self) -> list[Tensor]:
        """What the previous rank passed on."""
        for work in self._works:
            work.wait()
        return self._received


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchanged(t, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchanged(grad, ctx.group), None


def _exchanged(t: Tensor, group: dist.ProcessGroup) -> Tensor:
    t = t.contiguous()
    received = torch.empty_like(t)
    dist.all_to_all_single(received, t, group=group)
    return received


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        gathered = t.new_empty(t.shape[0] * group.size(), *t.shape[1:])
        dist.all_gather_into_tensor(gathered, t.contiguous(), group=group)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        summands = grad.to(accumulation_dtype(grad.dtype)).contiguous()
        own = summands.new_empty(summands.shape[0] // ctx.group.size(), *summands.shape[1:])
        dist.reduce_scatter_tensor(own, summands, group=ctx.group)
        return own.to(grad.dtype), None
