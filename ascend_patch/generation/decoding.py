"""A layer's step of generation, from upstream's modules without what they do for training.

A step of decoding has one token a request. Its arithmetic is small, and most of its time would go to what stands around
it: autograd functions, hooks, a dispatcher that sorts tokens for a journey. The operators are those of the whole layer,
so that the tokens are, too. Layers that are not as plain as Mixtral's stay upstream's.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.nn.functional import silu

from ascend_patch.generation.packed import Packed, grouped_linear, is_packable, linear, pack_output_layer
from ascend_patch.modules.grouped_linear import ColumnParallelGroupedLinear, RowParallelGroupedLinear
from ascend_patch.modules.linear import LayerNormColumnParallelLinear
from ascend_patch.modules.norm import normalize
from ascend_patch.ops.permute import permute, unpermute
from ascend_patch.ops.rotary import apply_rotary
from ascend_patch.ops.swiglu import swiglu


def shorten(model: Any) -> None:
    """Let the plain layers of a model that generates take the short way; they stay where they are."""
    if model.position_embedding_type != "rope":
        return
    layers = model.decoder.layers
    short = [index for index, layer in enumerate(layers) if is_plain(layer)]
    step = _Step()
    for index in short:
        layers[index] = DecodingLayer(layers[index], step, first=index == short[0])
    if short and is_packable(model.parameters()):
        for index in short:
            layers[index].pack()
        output: Any = getattr(model, "output_layer", None)  # of the last pipeline stage
        if type(output) is ColumnParallelLinear and output.weight is not None and output.tp_group.size() == 1:
            pack_output_layer(output)


def is_plain(layer: Any) -> bool:
    """Whether :class:`DecodingLayer` computes all that this layer does."""
    if type(layer) is not TransformerLayer or type(layer.self_attention) is not SelfAttention:
        return False
    config, attention = layer.config, layer.self_attention
    if config.num_query_groups < attention.pg_collection.tp.size() or attention.linear_proj.bias is not None:
        return False
    return (
        type(attention.linear_qkv) in (ColumnParallelLinear, LayerNormColumnParallelLinear)
        and type(attention.linear_proj) is RowParallelLinear
        and attention.linear_qkv.bias is None
        and all(isinstance(norm, IdentityOp | None) for norm in (attention.q_layernorm, attention.k_layernorm))
        and isinstance(layer.cross_attention, IdentityOp)
        and config.softmax_type == "vanilla"
        and not config.no_rope_freq
        and not config.attention_output_gate
        and not config.sequence_parallel
        and not config.fp32_residual_connection
        and not (config.fp8 or config.fp4)
    )


def has_plain_experts(mlp: Any) -> bool:
    """Whether ``mlp`` is experts that are all on this rank, and :class:`DecodingLayer` computes all that they do."""
    if type(mlp) is not MoELayer or type(mlp.experts) is not TEGroupedMLP:
        return False
    config, experts = mlp.config, mlp.experts
    return (
        mlp.token_dispatcher.tp_ep_group.size() == 1
        and type(experts.linear_fc1) is ColumnParallelGroupedLinear
        and type(experts.linear_fc2) is RowParallelGroupedLinear
        and config.gated_linear_unit
        and config.activation_func is silu
        and mlp.shared_experts is None
        and config.moe_expert_capacity_factor is None
        and not config.moe_apply_probs_on_input
        and not getattr(config, "moe_latent_size", None)
        and not getattr(config, "moe_mlp_glu_interleave_size", None)
    )


class _Step:
    """What the first layer of a step leaves for the others: the angles ``[tokens, 1, 1, r]`` of its positions."""

    angles: Tensor


class DecodingLayer(torch.nn.Module):
    """A :class:`TransformerLayer` that has a short way for the steps of the dynamic engine."""

    def __init__(self, layer: TransformerLayer, step: _Step, first: bool) -> None:
        super().__init__()
        self._step, self._first = step, first
        self.layer = layer
        self.layer_number = layer.layer_number
        self._plain_experts = has_plain_experts(layer.mlp)
        self._packed_qkv: Packed | None = None
        self._packed_proj: Packed | None = None
        self._packed_experts: tuple[list[Packed] | None, list[Packed] | None] = (None, None)
        attention = layer.self_attention
        self._number_in_cache = attention.layer_number - attention._get_pp_layer_offset_for_inference()

    def pack(self) -> None:
        """Multiply by copies of the weights that oneDNN reads faster; see :mod:`ascend_patch.generation.packed`."""
        attention, mlp = self.layer.self_attention, self.layer.mlp
        self._packed_qkv, self._packed_proj = Packed(attention.linear_qkv.weight), Packed(attention.linear_proj.weight)
        if self._plain_experts:
            fc1, fc2 = mlp.experts.linear_fc1.weight, mlp.experts.linear_fc2.weight
            self._packed_experts = ([Packed(expert) for expert in fc1], [Packed(expert) for expert in fc2])

    def forward(self, hidden_states: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
        """``[tokens, 1, h]`` -> the same; the arguments are those of :meth:`TransformerLayer.forward`."""
        context = options["inference_context"]  # None: the whole of a text is scored, as evaluation does
        if context is None:
            return self.layer(hidden_states=hidden_states, **options)
        layer = self.layer
        attended = self._attend(layer.input_layernorm(hidden_states), context, options["rotary_pos_emb"])
        hidden_states = hidden_states + attended
        normed = layer.pre_mlp_layernorm(hidden_states)
        output = self._experts(normed) if self._plain_experts else layer.mlp(normed)[0]
        return hidden_states + output, None

    def _attend(self, x: Tensor, context: Any, angles: Tensor) -> Tensor:
        attention = self.layer.self_attention
        groups, head = attention.num_query_groups_per_partition, attention.hidden_size_per_attention_head
        qkv_linear = attention.linear_qkv
        if isinstance(qkv_linear, LayerNormColumnParallelLinear):
            config = qkv_linear.config
            weight, bias = qkv_linear.layer_norm_weight, qkv_linear.layer_norm_bias
            x = normalize(x, config, weight, bias, config.layernorm_epsilon)
        tokens = x.shape[0]
        qkv = linear(x, qkv_linear.weight, self._packed_qkv).view(
            tokens, 1, groups, -1, head
        )  # [t, 1, ng, np / ng + 2, hn]
        if self._first:
            # Of a tensor of inference mode nothing is kept: each layer would make its own cosines.
            with torch.inference_mode(False), torch.no_grad():
                self._step.angles = angles[context.current_input_and_position_ids()[1][0]]
        rotated = qkv[..., :-1, :].reshape(tokens, 1, -1, head)  # queries and keys
        rotated = apply_rotary(rotated, self._step.angles, self.layer.config.rotary_interleaved).view(
            tokens, 1, groups, -1, head
        )
        query, key, value = rotated[..., :-1, :].reshape(tokens, 1, -1, head), rotated[..., -1, :], qkv[..., -1, :]
        context.append_key_value_cache(self._number_in_cache, key, value)
        key_cache, value_cache, block_table = context.key_value_cache(self._number_in_cache)
        cu_query_lengths, most_queries = context.cu_query_lengths()
        cu_key_lengths, key_lengths, most_keys = context.cu_kv_lengths()
        attended = attention.flash_decode_and_prefill(
            query,
            key_cache,
            value_cache,
            most_queries,
            most_keys,
            cu_query_lengths,
            cu_key_lengths,
            key_lengths,
            block_table,
            context.is_decode_only(),
        )
        output = linear(attended.view(tokens, 1, -1), attention.linear_proj.weight, self._packed_proj)
        tensor_parallel = attention.pg_collection.tp
        if tensor_parallel.size() > 1:
            torch.distributed.all_reduce(output, group=tensor_parallel)
        return output

    def _experts(self, x: Tensor) -> Tensor:
        mlp = self.layer.mlp
        rows = x.view(-1, x.shape[-1])
        probs, routing_map = mlp.router(x)
        counts = routing_map.sum(dim=0).tolist()
        permuted, row_probs, order = permute(rows, routing_map, probs, sum(counts))
        packed_fc1, packed_fc2 = self._packed_experts
        hidden = swiglu(grouped_linear(permuted, mlp.experts.linear_fc1.weight, packed_fc1, counts), row_probs)
        output = grouped_linear(hidden, mlp.experts.linear_fc2.weight, packed_fc2, counts)
        return unpermute(output, order, rows.shape).view(x.shape)
