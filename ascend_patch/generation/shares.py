"""Work dealt out over the data parallel ranks, each of which has a whole model, or its experts on several of them."""

from typing import Any

import torch
from megatron.core import parallel_state

from ascend_patch.generation import ranks


class Shares:
    """Which pieces of work are this rank's, and what all ranks have made of theirs. Made by all ranks at once.

    Args:
        config: the model's, a ``TransformerConfig``.
    """

    def __init__(self, config: Any) -> None:
        expert = config.expert_model_parallel_size * (config.expert_tensor_parallel_size or 1)
        self._together = expert > config.tensor_model_parallel_size
        self._rank = parallel_state.get_data_parallel_rank()
        self._size = parallel_state.get_data_parallel_world_size()
        if self._together and config.moe_token_dispatcher_type == "allgather":
            # It wants the same number of tokens of every rank.
            self._rank, self._size = 0, 1
        self._group = ranks.patient_group() if self._size > 1 else None

    def own(self, count: int) -> range:
        """The places of this rank's among ``count`` pieces of work."""
        return range(self._rank, count, self._size)

    def any_busy(self, busy: bool) -> bool:
        """Whether this rank has a step to make: it is ``busy``, or its experts work for a rank that is."""
        if not self._together:
            return busy
        flag = torch.tensor(busy, dtype=torch.int32, device=torch.cuda.current_device())
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def gather[T](self, own: dict[int, T]) -> list[T]:
        """The results of all ranks, in the order of their places; each rank gives those of its own."""
        found = dict(own)
        if self._group is not None:
            shares: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shares, own, self._group)
            for share in shares:
                found |= share
        return [found[place] for place in range(len(found))]
