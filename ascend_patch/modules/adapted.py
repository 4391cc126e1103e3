"""Layers of a built model with low-rank adapters beside them.

A layer keeps its parameters and their names; its adapter is a child module, ``lora``, with the parameters ``A`` and
``B``. :func:`attach` gives a layer its adapter and another class: the same layer, which adds what the adapter returns
to its output.
"""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.moe.router import TopKRouter

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.modules.grouped_linear import ColumnParallelGroupedLinear, GroupedLinear, RowParallelGroupedLinear
from ascend_patch.modules.linear import LayerNormColumnParallelLinear
from ascend_patch.modules.lora import DenseAdapter, GroupedAdapter, Lora

PLACES = {
    "linear_qkv": "self_attention.linear_qkv",
    "linear_proj": "self_attention.linear_proj",
    "linear_fc1": "mlp.linear_fc1",
    "linear_fc2": "mlp.linear_fc2",
    "router": "mlp.router",
}
"""Target -> its place in a layer; the linear layers of experts are in ``mlp.experts``."""


_Layer: Any = torch.nn.Module
"""Whichever class of linear layer comes after :class:`_Adapted`, for mypy."""


class _Adapted(_Layer):
    """A layer that returns output and bias, with an adapter."""

    lora: DenseAdapter | GroupedAdapter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Output and bias, of the layer's input and, if it is of experts, the tokens of each."""
        output, bias = super().forward(*args, **kwargs)
        return output + self.lora(*args), bias

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        # What the layer itself says of its child is replaced.
        return super().sharded_state_dict(prefix, sharded_offsets, metadata) | self.lora.sharded_state_dict(
            f"{prefix}lora.", sharded_offsets, metadata
        )


class AdaptedColumn(_Adapted, ColumnParallelLinear):
    """A column parallel layer with an adapter."""


class AdaptedNormColumn(LayerNormColumnParallelLinear, AdaptedColumn):
    """The same after a norm. The norm is the first of the bases: what it returns is the adapter's input too."""


class AdaptedRow(_Adapted, RowParallelLinear):
    """A row parallel layer with an adapter."""


class AdaptedGroupedColumn(_Adapted, ColumnParallelGroupedLinear):
    """linear_fc1 of experts with adapters."""


class AdaptedGroupedRow(_Adapted, RowParallelGroupedLinear):
    """linear_fc2 of experts with adapters."""


class AdaptedRouter(TopKRouter):
    """A router with an adapter."""

    lora: torch.nn.Module

    def gating(self, input: torch.Tensor) -> torch.Tensor:
        """``[s, b, h]`` -> logits ``[s, b, experts]``."""
        return super().gating(input) + self.lora(input)


_ADAPTED: dict[type, type] = {
    ColumnParallelLinear: AdaptedColumn,
    LayerNormColumnParallelLinear: AdaptedNormColumn,
    RowParallelLinear: AdaptedRow,
    ColumnParallelGroupedLinear: AdaptedGroupedColumn,
    RowParallelGroupedLinear: AdaptedGroupedRow,
    TopKRouter: AdaptedRouter,
}


def attach(model: GPTModel, lora: Lora) -> None:
    """Freeze ``model``, and give the layers that ``lora`` names trainable adapters.

    Raises:
        AscendPatchError: a layer is not there, or is of a class that can have none.
    """
    model.requires_grad_(False)
    for layer in model.decoder.layers:
        for target in lora.targets:
            _adapt(layer, target, lora)
    if model.pre_process:
        # Recomputation only has gradients where its input has: with a frozen embedding that would be nowhere.
        model.embedding.register_forward_hook(_require_gradient)


def _adapt(layer: Any, target: str, lora: Lora) -> None:
    place = PLACES[target]
    experts = getattr(layer.mlp, "experts", None)
    if experts is not None and target in ("linear_fc1", "linear_fc2"):
        place = place.replace("mlp.", "mlp.experts.")
        if not hasattr(experts, target):
            raise AscendPatchError(
                f"--lora-target-modules names {target}, which in a Mixtral is of the experts, and these are "
                f"{type(experts).__name__}; adapters of experts need --moe-grouped-gemm. Add it, or leave {target} out."
            )
    try:
        module = layer.get_submodule(place)
    except AttributeError as error:
        raise AscendPatchError(
            f"--lora-target-modules names {target}, but layer {layer.layer_number} has no {place}. Leave {target} out."
        ) from error
    adapted = _ADAPTED.get(type(module))
    if adapted is None:
        raise AscendPatchError(
            f"--lora-target-modules names {target}, but {place} is a {type(module).__name__}, which cannot have an "
            f"adapter; allowed are {', '.join(known.__name__ for known in _ADAPTED)}. Use --transformer-impl local."
        )
    name = f"decoder.layers.{layer.layer_number - 1}.{place}"
    if isinstance(module, GroupedLinear):
        adapter: torch.nn.Module = GroupedAdapter(module, lora, name)
    else:
        adapter = DenseAdapter(module, lora, name, target == "linear_fc1" and module.config.gated_linear_unit)
    module.lora = adapter
    module.__class__ = adapted


def _require_gradient(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_()
