"""Collectives in a group of one rank: the distributed optimizer has two of them on all gradients and parameters.

Gloo copies the whole input, reduces the copy with nobody and copies it back, in every step. With one rank the
result is the input, and upstream lets both be the same memory: then there is nothing to do.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from ascend_patch.devices.cpu.collectives import completed
from ascend_patch.devices.substitute import Substitutions


def install(substitutions: Substitutions) -> None:
    """Substitute the two functions. Groups of more ranks pass through."""
    # In c10d too, which compares what it has recorded for coalescing with its own globals.
    owners = (dist, c10d)
    substitutions.set_in_all(owners, "all_gather_into_tensor", _all_gather_into_tensor(dist.all_gather_into_tensor))
    substitutions.set_in_all(owners, "reduce_scatter_tensor", _reduce_scatter_tensor(dist.reduce_scatter_tensor))


def _all_gather_into_tensor(all_gather_into_tensor: Callable) -> Callable:
    @functools.wraps(all_gather_into_tensor)
    def host_all_gather_into_tensor(
        output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any = None, async_op: bool = False
    ) -> dist.Work | None:
        if _fits_one_rank(output_tensor, input_tensor, group):
            return _copy(output_tensor, input_tensor, async_op)
        return all_gather_into_tensor(output_tensor, input_tensor, group=group, async_op=async_op)

    return host_all_gather_into_tensor


def _reduce_scatter_tensor(reduce_scatter_tensor: Callable) -> Callable:
    @functools.wraps(reduce_scatter_tensor)
    def host_reduce_scatter_tensor(
        output: torch.Tensor,
        input: torch.Tensor,
        op: Any = dist.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> dist.Work | None:
        if _fits_one_rank(output, input, group):  # whatever `op`: one value reduced is that value
            return _copy(output, input, async_op)
        return reduce_scatter_tensor(output, input, op=op, group=group, async_op=async_op)

    return host_reduce_scatter_tensor


def _fits_one_rank(output: torch.Tensor, input: torch.Tensor, group: Any) -> bool:
    """False also for what the original has to complain about."""
    return dist.get_world_size(group) == 1 and output.numel() == input.numel() and output.dtype == input.dtype


def _copy(output: torch.Tensor, input: torch.Tensor, async_op: bool) -> dist.Work | None:
    same = output.data_ptr() == input.data_ptr() and output.is_contiguous() and input.is_contiguous()
    if not same:
        output.copy_(input.view_as(output))
    return completed(async_op)
