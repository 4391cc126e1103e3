"""Linear layers of all local experts as one grouped GEMM, for upstream's own ``TEGroupedMLP``.

``TEGroupedMLP`` takes its two linear layers from its spec and needs nothing else of TransformerEngine, so
recomputation, offloading and the activation stay upstream's. The weight is **one** parameter
``[E, out, in]``: grouped kernels (torch, CANN) want it contiguous, and so does a weight gradient that is
accumulated in place (``gradient_accumulation_fusion``). Checkpoints do not show that: ``state_dict`` writes
``weight0 … weight{E-1}`` as TransformerEngine does, ``sharded_state_dict`` what ``SequentialMLP`` and
``TEGroupedMLP`` write, the empty ``_extra_state`` of each expert included, without which neither of them would
load it.
"""

from collections.abc import Callable

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, get_expert_parallel_rng_tracker_name
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_object_for_checkpoint
from megatron.core.utils import divide

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.modules.main_grad import with_main_grad
from ascend_patch.ops.grouped_gemm import grouped_gemm
from ascend_patch.ops.parallel_grouped_gemm import Exchange, all_to_all_grouped_gemm, grouped_gemm_all_to_all


class GroupedLinear(torch.nn.Module):
    """``y_e = x_e @ weight[e].T`` for the rows ``x_e`` of each local expert ``e``.

    The dispatcher has already done whatever communication expert tensor parallelism needs, so this layer does
    none: it holds its part of the weight, split along ``partition_dim``.

    Args:
        num_local_experts: E.
        input_size, output_size: of the whole expert, before expert tensor parallelism.
        partition_dim: 0 splits the output (column parallel), 1 the input (row parallel).
        gated: the output is gate and up projection one after the other; checkpoints keep each contiguous.
    """

    def __init__(
        self,
        num_local_experts: int,
        input_size: int,
        output_size: int,
        *,
        partition_dim: int,
        gated: bool,
        config: TransformerConfig,
        init_method: Callable[[torch.Tensor], object],
        bias: bool,
        pg_collection: ProcessGroupCollection,
    ) -> None:
        super().__init__()
        if bias:
            raise AscendPatchError(
                "Experts with a bias have no grouped GEMM here. Use --disable-bias-linear, as every Mixtral does, "
                "or leave out --moe-grouped-gemm."
            )
        self.num_local_experts = num_local_experts
        self.partition_dim = partition_dim
        self.gated = gated
        self.exchange: Exchange | None = None
        self.accumulates_in_place = config.gradient_accumulation_fusion
        self.ep_group, self.tp_group, self.dp_group = pg_collection.ep, pg_collection.expt_tp, pg_collection.expt_dp
        tp_size = self.tp_group.size()
        shape = [output_size, input_size]
        shape[partition_dim] = divide(shape[partition_dim], tp_size)
        on_cpu = config.use_cpu_initialization
        self.weight = torch.nn.Parameter(
            torch.empty(
                num_local_experts,
                *shape,
                dtype=config.params_dtype,
                device=None if on_cpu else torch.cuda.current_device(),
            )
        )
        if config.perform_initialization:
            self._initialize(init_method, output_size, input_size, on_cpu)
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=partition_dim + 1, stride=1)
        # False moves the gradient's reduction from the data parallel to the expert data parallel group.
        self.weight.allreduce = not (  # type: ignore[attr-defined]
            config.expert_model_parallel_size > 1
            or config.expert_tensor_parallel_size != config.tensor_model_parallel_size
        )
        self._register_state_dict_hook(_split_experts)
        self.register_load_state_dict_pre_hook(_stack_experts)

    @torch.no_grad()
    def _initialize(self, init_method: Callable, output_size: int, input_size: int, on_cpu: bool) -> None:
        if not on_cpu:
            with get_cuda_rng_tracker().fork(get_expert_parallel_rng_tracker_name()):
                for weight in self.weight:
                    init_method(weight)
            return
        for weight in self.weight:  # every rank draws the whole matrix and keeps its part, as upstream does
            whole = torch.empty(output_size, input_size, dtype=torch.float)
            init_method(whole)
            weight.copy_(whole.chunk(self.tp_group.size(), dim=self.partition_dim)[self.tp_group.rank()])

    def forward(self, x: torch.Tensor, tokens_per_expert: list[int]) -> tuple[torch.Tensor, None]:
        """``x`` is ``[sum(tokens_per_expert), in]``, sorted by expert; returns ``[…, out]`` and no bias.

        With an ``exchange``, which is for one call, input or output is what this rank sends or gets back instead.
        """
        weight, main_grad = with_main_grad(self.weight, self.accumulates_in_place)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return grouped_gemm(x, weight, tokens_per_expert, main_grad), None
        layer = all_to_all_grouped_gemm if self.partition_dim == 0 else grouped_gemm_all_to_all
        return layer(x, weight, exchange, main_grad), None

    def backward_dw(self) -> None:
        """Nothing is delayed: the weight gradient is computed in the backward pass (TEGroupedMLP asks)."""

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """The stacked weight as one ShardedTensor an expert (and a half of a gated projection).

        Global tensor: ``[…, experts, out, in]`` with the axes of ``sharded_offsets`` and the experts' axis
        prepended, the layout in which ``SequentialMLP`` and ``TEGroupedMLP`` save, whatever EP and TP.
        """
        if (metadata or {}).get("singleton_local_shards", False):
            raise AscendPatchError(
                "Checkpoints with singleton_local_shards are not supported for grouped experts; upstream's default is "
                "False. Save without it."
            )
        experts, rank = self.num_local_experts, self.ep_group.rank()
        tp_size, tp_rank = self.tp_group.size(), self.tp_group.rank()
        axis = len(sharded_offsets)

        def shard(key: str, tensor: torch.Tensor, expert: int, index: int, count: int, replica_id) -> ShardedTensor:
            return ShardedTensor.from_rank_offsets(
                key,
                tensor,
                *sharded_offsets,
                (axis, rank * experts + expert, self.ep_group.size() * experts),
                (axis + 1 + self.partition_dim, index, count),
                replica_id=replica_id,
                prepend_axis_num=axis + 1,
            )

        def build(key: str, weight: torch.Tensor, replica_id, flattened_range=None) -> list:
            if not self.gated:
                return [shard(key, weight[e], e, tp_rank, tp_size, replica_id) for e in range(experts)]
            return [
                shard(key, half, e, tp_rank + part * tp_size, 2 * tp_size, replica_id)
                for e in range(experts)
                for part, half in enumerate(weight[e].chunk(2, dim=0))
            ]

        @torch.no_grad()
        def merge(shards: list[torch.Tensor]) -> torch.Tensor:
            if not self.gated:
                return torch.stack(shards)
            return torch.stack([torch.cat(pair) for pair in zip(shards[::2], shards[1::2], strict=True)])

        key, extra_state = f"{prefix}weight", f"{prefix}_extra_state"
        weight = ShardedTensorFactory(key, self.weight, build, merge, replica_id=(0, 0, self.dp_group.rank()))
        return {key: weight} | {
            f"{extra_state}{e}": make_sharded_object_for_checkpoint(
                None,
                extra_state,
                (*sharded_offsets, (axis, rank * experts + e, self.ep_group.size() * experts)),
                replica_id=(0, tp_rank, self.dp_group.rank()),
            )
            for e in range(experts)
        }


def _split_experts(module: GroupedLinear, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    weight = state_dict.pop(f"{prefix}weight")
    state_dict.update({f"{prefix}weight{e}": weight[e] for e in range(module.num_local_experts)})


def _stack_experts(module: GroupedLinear, state_dict: dict, prefix: str, *_) -> None:
    keys = [f"{prefix}weight{e}" for e in range(module.num_local_experts)]
    if all(key in state_dict for key in keys):  # absent: a distributed checkpoint, which holds it stacked
        state_dict[f"{prefix}weight"] = torch.stack([state_dict.pop(key) for key in keys])
    for index in ("", *range(module.num_local_experts)):  # TransformerEngine's state for fp8; ours is empty
        state_dict.pop(f"{prefix}_extra_state{index}", None)


class ColumnParallelGroupedLinear(GroupedLinear):
    """``linear_fc1`` of ``TEGroupedMLP``; ``output_size`` includes both halves of a gated unit."""

    def __init__(
        self, num_local_experts: int, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs
    ) -> None:
        gated = config.gated_linear_unit
        super().__init__(
            num_local_experts, input_size, output_size, partition_dim=0, gated=gated, config=config, **_used(kwargs)
        )


class RowParallelGroupedLinear(GroupedLinear):
    """``linear_fc2`` of ``TEGroupedMLP``."""

    def __init__(
        self, num_local_experts: int, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs
    ) -> None:
        super().__init__(
            num_local_experts, input_size, output_size, partition_dim=1, gated=False, config=config, **_used(kwargs)
        )


def _used(kwargs: dict) -> dict:
    """Of what ``TEGroupedMLP`` passes, the arguments that mean something here; the rest is TransformerEngine's."""
    return {name: kwargs[name] for name in ("init_method", "bias", "pg_collection")}
