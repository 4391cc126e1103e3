"""What the ranks of a job tell each other, any Python object that can be pickled."""

from datetime import timedelta
from typing import Any, cast

import torch
from megatron.core import parallel_state


def broadcast[T](value: T | None, source: int = 0, group: Any = None, device: torch.device | None = None) -> T:
    """``value`` of rank ``source`` on all ranks of ``group``, or of the job.

    Args:
        source: its rank in the job.
        device: through which the bytes go; by default the one of the group's backend.
    """
    if torch.distributed.get_world_size(group) == 1:
        return cast(T, value)
    box: list[Any] = [value]
    torch.distributed.broadcast_object_list(box, source, group, device=device)
    return box[0]


def from_last_stage[T](value: T | None) -> T:
    """``value`` of the last stage of a pipeline, on all of its stages."""
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    return broadcast(value, last, parallel_state.get_pipeline_model_parallel_group())


def patient_group() -> Any:
    """All ranks, on the host, where they may wait for each other for days: devices' collectives give up before."""
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))


def first() -> bool:
    """Whether this is the job's rank 0."""
    return torch.distributed.get_rank() == 0
