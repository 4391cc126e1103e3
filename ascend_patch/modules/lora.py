"""Low-rank adapters beside frozen linear layers: ``y = W x + alpha / r * B A dropout(x)`` (Hu et al., 2021).

Of the two matrices one is split between tensor parallel ranks as the layer's weight is, the other is the same on all.
``A`` is drawn from a generator of its own, seeded with the name of the layer: it is the same in every layout, and no
other random number of a run changes. ``B`` is zero. :mod:`ascend_patch.modules.adapted` puts adapters into a model.
"""

import hashlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    set_tensor_model_parallel_attributes,
)
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, get_data_parallel_rng_tracker_name
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch.nn.functional import dropout, linear

from ascend_patch.modules.grouped_linear import GroupedLinear
from ascend_patch.ops.grouped_gemm import grouped_gemm


@dataclass(frozen=True)
class Lora:
    """What the flags say: ``--lora-r``, ``--lora-alpha``, ``--lora-dropout``, ``--lora-target-modules``, ``--seed``."""

    rank: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]
    seed: int

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def draw(self, name: str, in_features: int) -> torch.Tensor:
        """The initial ``A`` ``[rank, in_features]`` of the layer ``name``: float32, on the host, Kaiming uniform."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        return torch.nn.init.kaiming_uniform_(torch.empty(self.rank, in_features), math.sqrt(5), generator=generator)


class DenseAdapter(torch.nn.Module):
    """Of a layer that every token passes.

    Args:
        layer: column parallel, row parallel, or the router, which every rank has.
        name: of the layer in the whole model.
        gated: the layer's output is gate and up projection one after the other; checkpoints keep each contiguous.
    """

    def __init__(self, layer: Any, lora: Lora, name: str, gated: bool) -> None:
        super().__init__()
        self.lora, self.gated, self.tp_group = lora, gated, layer.tp_group
        self.column, self.row = isinstance(layer, ColumnParallelLinear), isinstance(layer, RowParallelLinear)
        self.sequence_parallel = layer.config.sequence_parallel and self.tp_group.size() > 1
        weight = layer.weight
        first = lora.draw(name, weight.shape[1] * (self.tp_group.size() if self.row else 1))
        if self.row:
            first = first.chunk(self.tp_group.size(), dim=1)[self.tp_group.rank()]
        self.A = torch.nn.Parameter(first.to(weight, copy=True).contiguous())
        self.B = torch.nn.Parameter(weight.new_zeros(weight.shape[0], lora.rank))
        if self.column:
            set_tensor_model_parallel_attributes(self.B, is_parallel=True, dim=0, stride=1)
        if self.row:
            set_tensor_model_parallel_attributes(self.A, is_parallel=True, dim=1, stride=1)
        # Of what every rank has, each has seen a part of the sequence: upstream then adds the gradients up.
        for whole in [self.A] * (not self.row) + [self.B] * (not self.column):
            whole.sequence_parallel = layer.config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's input ``[s, b, in]`` -> what is added to its output ``[s, b, out]``, each as the layer has it.

        What is exchanged between tensor parallel ranks has ``rank`` features, not those of the layer.
        """
        if self.lora.dropout and self.training:
            with self._generator():
                x = dropout(x, self.lora.dropout)
        narrow = linear(x, self.A) * self.lora.scaling
        if exchange := self._exchange():
            narrow = exchange(narrow, group=self.tp_group)
        return linear(narrow, self.B)

    def _exchange(self) -> Callable | None:
        """What brings ``A x`` to the ranks that need it, and its gradient back."""
        if self.column:
            return (
                gather_from_sequence_parallel_region if self.sequence_parallel else copy_to_tensor_model_parallel_region
            )
        if not self.row:
            return None
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region
        return reduce_from_tensor_model_parallel_region

    def _generator(self) -> AbstractContextManager:
        """Other masks on other ranks where they have other inputs.

        With sequence parallelism that is so everywhere, and upstream is in such a context already.
        """
        return get_cuda_rng_tracker().fork() if self.row and not self.sequence_parallel else nullcontext()

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """The matrices as upstream's linear layers describe their weights."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        found = make_sharded_tensors_for_checkpoint(
            {"A": self.A, "B": self.B},
            prefix,
            {"B": 0} if self.column else {"A": 1} if self.row else {},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        if self.gated:
            key = f"{prefix}B"
            found[key] = apply_swiglu_sharded_factory(
                found[key], sharded_offsets, metadata.get("singleton_local_shards", False)
            )
        return found


class GroupedAdapter(torch.nn.Module):
    """Of the experts of a rank: a pair of matrices each, as two grouped GEMMs.

    As in the layer, expert tensor parallel ranks exchange no activations: the dispatcher adds up what each returns, in
    both directions. Only the gradient of the matrix that all of them have is left to be added up here.

    Args:
        layer: linear_fc1 or linear_fc2 of all local experts.
        name: of the layer in the whole model.
    """

    def __init__(self, layer: GroupedLinear, lora: Lora, name: str) -> None:
        super().__init__()
        self.lora, self.gated = lora, layer.gated
        self.ep_group, self.tp_group, self.dp_group = layer.ep_group, layer.tp_group, layer.dp_group
        self.row = layer.partition_dim == 1
        weight, tp_size = layer.weight, self.tp_group.size()
        experts, out_features, in_features = weight.shape
        first = torch.stack(
            [
                lora.draw(f"{name}.{self.ep_group.rank() * experts + e}", in_features * (tp_size if self.row else 1))
                for e in range(experts)
            ]
        )
        if self.row:
            first = first.chunk(tp_size, dim=2)[self.tp_group.rank()]
        self.A = torch.nn.Parameter(first.to(weight, copy=True).contiguous())
        self.B = torch.nn.Parameter(weight.new_zeros(experts, out_features, lora.rank))
        for parameter, is_split in ((self.A, self.row), (self.B, not self.row)):
            # A norm counts what is not split on the first tensor parallel rank alone. Without expert tensor
            # parallelism, the experts there are others.
            is_parallel = is_split or tp_size == 1
            set_tensor_model_parallel_attributes(parameter, is_parallel, dim=2 if self.row else 1, stride=1)
            parameter.allreduce = weight.allreduce  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor, tokens_per_expert: list[int]) -> torch.Tensor:
        """``x [sum(tokens_per_expert), in]``, sorted by expert, -> what is added to the layer's output ``[…, out]``."""
        first, second = self.A, self.B
        if self.row:
            second = copy_to_tensor_model_parallel_region(second, group=self.tp_group)
        else:
            first = copy_to_tensor_model_parallel_region(first, group=self.tp_group)
        if self.lora.dropout and self.training:
            x = self._dropout(x)
        narrow = grouped_gemm(x, first, tokens_per_expert) * self.lora.scaling
        return grouped_gemm(narrow, second, tokens_per_expert)

    def _dropout(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout that draws one number of upstream's generator, however many tokens there are.

        Checkpoints keep the state of one data parallel rank for all. Were there a number drawn for each token, of which
        each rank has others, a run that is resumed would go on with other masks.
        """
        with get_cuda_rng_tracker().fork(get_data_parallel_rng_tracker_name()):
            seed = int(torch.randint(2**62, (), device=x.device))
        # The halves of linear_fc1 have the same input, and one mask.
        rank = self.ep_group.rank() * self.tp_group.size() + (self.tp_group.rank() if self.row else 0)
        generator = torch.Generator(x.device).manual_seed(seed + rank)
        kept = 1 - self.lora.dropout
        return x * torch.empty_like(x).bernoulli_(kept, generator=generator).div_(kept)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """Global tensors ``[…, experts, rank, in]`` and ``[…, experts, out, rank]``."""
        axis, tp_size, tp_rank = len(sharded_offsets), self.tp_group.size(), self.tp_group.rank()
        experts = (axis, self.ep_group.rank(), self.ep_group.size())

        def shard(key: str, tensor: torch.Tensor, *split: tuple[int, int, int], replica_id: tuple) -> ShardedTensor:
            return ShardedTensor.from_rank_offsets(
                key, tensor, *sharded_offsets, experts, *split, replica_id=replica_id, prepend_axis_num=axis
            )

        @torch.no_grad()  # a checkpoint is loaded into the halves
        def build(key: str, tensor: torch.Tensor, replica_id: tuple, flattened_range: object = None) -> list:
            return [
                shard(key, half, (axis + 1, tp_rank + part * tp_size, 2 * tp_size), replica_id=replica_id)
                for part, half in enumerate(tensor.chunk(2, dim=1))
            ]

        @torch.no_grad()
        def merge(halves: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat(halves, dim=1)

        split, whole = (0, 0, self.dp_group.rank()), (0, tp_rank, self.dp_group.rank())
        first, second = f"{prefix}A", f"{prefix}B"
        if self.row:
            columns = (axis + 2, tp_rank, tp_size)
            return {
                first: shard(first, self.A, columns, replica_id=split),
                second: shard(second, self.B, replica_id=whole),
            }
        return {
            first: shard(first, self.A, replica_id=whole),
            second: ShardedTensorFactory(second, self.B, build, merge, replica_id=split)
            if self.gated
            else shard(second, self.B, (axis + 1, tp_rank, tp_size), replica_id=split),
        }
