"""The all-to-all of experts during their linear layers: a dispatcher that leaves it to these."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import all_to_all
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.modules.grouped_linear import ColumnParallelGroupedLinear, GroupedLinear, RowParallelGroupedLinear
from ascend_patch.ops.parallel_grouped_gemm import Exchange
from ascend_patch.ops.permute import sort_chunks


class OverlappedTokenDispatcher(MoEAlltoAllTokenDispatcher):
    """Upstream's dispatcher without its all-to-all of tokens, which the two linear layers of the experts do.

    What each rank sends to each expert of all others reaches the host in one copy.
    """

    def __init__(self, linear_layers: Sequence[GroupedLinear], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.linear_layers = linear_layers
        self.num_global_tokens_per_local_expert = None  # upstream's sizes: nothing to copy to the host

    def preprocess(self, routing_map: torch.Tensor) -> None:
        """Gather the counts of all ranks and start their copy to the host. There are no tokens of an expert yet."""
        own = routing_map.sum(dim=0)
        counts = own.new_empty(self.ep_size * self.num_experts)
        dist.all_gather_into_tensor(counts, own, group=self.tp_ep_group)
        self._counts = _CopyToHost(counts.view(self.ep_size, self.num_experts), self.cuda_dtoh_stream)
        self.num_out_tokens = routing_map.shape[0] * self.config.moe_router_topk
        if self.config.moe_expert_capacity_factor is not None:
            self.num_out_tokens = sum(self._counts.wait()[self.ep_group.rank()])

    def token_dispatch(self, tokens: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens as they are, and the probabilities where the tokens will be."""
        self.exchange = Exchange(self.ep_group, self._counts.wait())
        pairs, rank = self.exchange.pairs, self.ep_group.rank()
        return tokens, all_to_all(self.ep_group, probs, [row[rank] for row in pairs], pairs[rank])

    def dispatch_postprocess(
        self, tokens: torch.Tensor, probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, tokens of each expert, and the probabilities by expert."""
        for layer in self.linear_layers:
            layer.exchange = self.exchange
        sizes = [count for row in self.exchange.received for count in row]
        probs, _ = sort_chunks(probs, sizes, self.sort_input_by_local_experts)
        return tokens, torch.tensor(self.exchange.rows_per_expert), probs

    def combine_preprocess(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Nothing: they are back."""
        return hidden_states

    def token_combine(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Nothing: they are back."""
        return hidden_states


class _CopyToHost:
    """A tensor of counts on its way to the host, on a stream of its own."""

    def __init__(self, counts: torch.Tensor, stream: torch.cuda.Stream) -> None:
        self._on_host, self._event = counts, None
        if counts.device.type != "cpu":
            self._on_host = torch.empty_like(counts, device="cpu", pin_memory=True)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._on_host.copy_(counts, non_blocking=True)
                counts.record_stream(stream)
            self._event = stream.record_event()

    def wait(self) -> Sequence[Sequence[int]]:
        if self._event is not None:
            self._event.synchronize()
        return self._on_host.tolist()


def overlap(layer: MoELayer, pg_collection: ProcessGroupCollection) -> None:
    """Let the linear layers of a built layer's experts do its all-to-all.

    Raises:
        AscendPatchError: these are not layers that can.
    """
    experts = layer.experts
    linear_layers: tuple[Any, ...] = getattr(experts, "linear_fc1", None), getattr(experts, "linear_fc2", None)
    if tuple(map(type, linear_layers)) != (ColumnParallelGroupedLinear, RowParallelGroupedLinear):
        raise AscendPatchError(
            "--overlap-dispatch-backward-with-experts-wgrad was given, but the experts are "
            f"{type(experts).__name__} without the grouped linear layers of ascend_patch. Leave patch "
            "moe.grouped_gemm on, or leave the flag out: the results are the same."
        )
    layer.token_dispatcher = OverlappedTokenDispatcher(
        linear_layers,
        layer.num_local_experts,
        layer.local_expert_indices,
        config=layer.config,
        pg_collection=pg_collection,
    )
