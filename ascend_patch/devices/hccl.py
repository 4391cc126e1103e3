"""What NCCL does and HCCL does not: reducing float64.

Upstream reduces one such number, the time at which the job started. HCCL moves float64 but has no reduction for it, so
every rank gathers all values and reduces them itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from ascend_patch.devices.substitute import Substitutions

_REDUCTIONS: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    dist.ReduceOp.SUM: lambda gathered: gathered.sum(0),
    dist.ReduceOp.AVG: lambda gathered: gathered.mean(0),
    dist.ReduceOp.MIN: lambda gathered: gathered.amin(0),
    dist.ReduceOp.MAX: lambda gathered: gathered.amax(0),
}


def install(substitutions: Substitutions) -> None:
    """Substitute ``torch.distributed.all_reduce``."""
    substitutions.wrap(dist, "all_reduce", _all_reduce)


def _all_reduce(all_reduce: Callable) -> Callable:
    @functools.wraps(all_reduce)
    def reduced(tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        ours = tensor.device.type == "npu" and tensor.dtype == torch.float64 and op in _REDUCTIONS and not async_op
        size = dist.get_world_size(group) if ours else 0
        if size < 1:  # -1 in a process that is not of the group; HCCL says itself what it does not take
            return all_reduce(tensor, op, group, async_op)
        gathered = tensor.new_empty(size, *tensor.shape)
        dist.all_gather_into_tensor(gathered, tensor.contiguous().unsqueeze(0), group)
        tensor.copy_(_REDUCTIONS[op](gathered))
        return None

    return reduced
