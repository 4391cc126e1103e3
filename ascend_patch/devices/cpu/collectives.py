"""The three collectives NCCL has and Gloo lacks, and memory that lives as long as it is sent.

* ``all_gather`` of tensors of different sizes (upstream: alltoall dispatcher with expert and expert-tensor
  parallelism, ``mappings._gather_along_first_dim`` with ``output_split_sizes``);
* ``reduce_scatter`` into tensors of different sizes (its backward);
* ``all_to_all`` of lists of tensors.

``isend`` keeps what it sends: upstream takes the memory away from a tensor that it has passed on to the next pipeline
stage (``deallocate_output_tensor``), in 0.17 before the other side has it. NCCL's streams order the two, Gloo does not.

Everything else upstream needs Gloo has natively, in bf16 and fp16 too, also for tensors without elements. It
has no 8-bit floating point and no 16-bit integers: such a call fails with Gloo's own "Invalid scalar type".
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from ascend_patch.devices.substitute import Substitutions


def install(substitutions: Substitutions) -> None:
    """Substitute the four functions. Calls that Gloo can do pass through."""
    owners = (dist, c10d)
    substitutions.set_in_all(owners, "all_gather", _all_gather(dist.all_gather))
    substitutions.set_in_all(owners, "reduce_scatter", _reduce_scatter(dist.reduce_scatter))
    substitutions.set_in_all(owners, "all_to_all", _all_to_all(dist.all_to_all))
    substitutions.set_in_all(owners, "isend", _isend(dist.isend))


def _isend(isend: Callable) -> Callable:
    @functools.wraps(isend)
    def host_isend(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> dist.Work | None:
        # The handle holds this other tensor of the same memory, whatever becomes of the first one.
        return isend(tensor.detach(), *args, **kwargs)

    return host_isend


class _Composite(dist.Work):
    """The handle of a collective that is made of others, with something to do when they have arrived."""

    def __init__(self, works: Sequence[dist.Work], finish: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self._works = list(works)
        self._finish = finish

    def wait(self, timeout: Any = None) -> bool:
        """Block until the result is in place. Further calls return at once."""
        while self._works:
            work = self._works[0]
            work.wait() if timeout is None else work.wait(timeout)
            self._works.pop(0)
        if self._finish is not None:
            finish, self._finish = self._finish, None
            finish()
        return True

    def is_completed(self) -> bool:
        """True once everything has arrived. The result is in place after :meth:`wait`."""
        return all(work.is_completed() for work in self._works)


def _give(work: _Composite, async_op: bool) -> dist.Work | None:
    """Return what a collective returns: the handle, or None after completion."""
    if async_op:
        return work
    work.wait()
    return None


def completed(async_op: bool) -> dist.Work | None:
    """What a collective returns that had nothing to wait for."""
    return _give(_Composite([]), async_op)


def _one_size(tensors: Sequence[torch.Tensor]) -> bool:
    return len({tensor.numel() for tensor in tensors}) <= 1


def _outside(group: Any) -> bool:
    return dist.get_rank(group) < 0


def _all_gather(all_gather: Callable) -> Callable:
    @functools.wraps(all_gather)
    def host_all_gather(
        tensor_list: list[torch.Tensor], tensor: torch.Tensor, group: Any = None, async_op: bool = False
    ) -> dist.Work | None:
        if _one_size(tensor_list) or _outside(group):
            return all_gather(tensor_list, tensor, group=group, async_op=async_op)
        # Everybody knows all sizes, so each rank broadcasts right into the place where its part belongs.
        tensor_list[dist.get_rank(group)].copy_(tensor)
        staged = [output.contiguous() for output in tensor_list]
        works = [
            dist.broadcast(part, group=group, group_src=rank, async_op=True)
            for rank, part in enumerate(staged)
            if part.numel()
        ]

        def finish() -> None:
            for output, part in zip(tensor_list, staged, strict=True):
                if part is not output:  # `output` was not contiguous
                    output.copy_(part)

        return _give(_Composite(works, finish), async_op)

    return host_all_gather


def _reduce_scatter(reduce_scatter: Callable) -> Callable:
    @functools.wraps(reduce_scatter)
    def host_reduce_scatter(
        output: torch.Tensor,
        input_list: list[torch.Tensor],
        op: Any = dist.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> dist.Work | None:
        if _one_size(input_list) or _outside(group):
            return reduce_scatter(output, input_list, op=op, group=group, async_op=async_op)
        # Gloo implements the even case the same way: reduce everything, keep a part.
        everything = torch.cat([part.reshape(-1) for part in input_list])
        work = dist.all_reduce(everything, op=op, group=group, async_op=True)
        mine = everything.split([part.numel() for part in input_list])[dist.get_rank(group)]
        return _give(_Composite([work], lambda: output.copy_(mine.view_as(output))), async_op)

    return host_reduce_scatter


def _all_to_all(all_to_all: Callable) -> Callable:
    @functools.wraps(all_to_all)
    def host_all_to_all(
        output_tensor_list: list[torch.Tensor],
        input_tensor_list: list[torch.Tensor],
        group: Any = None,
        async_op: bool = False,
    ) -> dist.Work | None:
        if _outside(group):
            return all_to_all(output_tensor_list, input_tensor_list, group=group, async_op=async_op)
        sent = [tensor.numel() for tensor in input_tensor_list]
        received = [tensor.numel() for tensor in output_tensor_list]
        outgoing = torch.cat([tensor.reshape(-1) for tensor in input_tensor_list])
        incoming = outgoing.new_empty(sum(received))
        work = dist.all_to_all_single(incoming, outgoing, received, sent, group=group, async_op=True)

        def finish() -> None:
            for output, part in zip(output_tensor_list, incoming.split(received), strict=True):
                output.copy_(part.view_as(output))

        return _give(_Composite([work], finish), async_op)

    return host_all_to_all
