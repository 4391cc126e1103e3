"""The arguments that a Megatron-LM checkpoint carries: which model it is and how it is laid out."""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.keys import Build
from ascend_patch.checkpoint.layout import Layout
from ascend_patch.checkpoint.shape import ModelShape

_ABSENT: tuple[Any, ...] = (None, False, 0)

_REQUIRED: dict[str, tuple[Any, ...]] = {
    "add_bias_linear": _ABSENT,
    "add_qkv_bias": _ABSENT,
    "apply_layernorm_1p": _ABSENT,
    "attention_output_gate": _ABSENT,
    "experimental_attention_variant": _ABSENT,
    "glu_linear_offset": _ABSENT,
    "heterogeneous_layers_config_path": _ABSENT,
    "hybrid_layer_pattern": _ABSENT,
    "hybrid_override_pattern": _ABSENT,
    "layernorm_zero_centered_gamma": _ABSENT,
    "linear_attention_freq": _ABSENT,
    "moe_latent_size": _ABSENT,
    "moe_mlp_glu_interleave_size": _ABSENT,
    "moe_router_enable_expert_bias": _ABSENT,
    "moe_router_group_topk": _ABSENT,
    "moe_router_pre_softmax": _ABSENT,
    "moe_router_score_function": ("softmax",),
    "moe_router_topk_scaling_factor": (*_ABSENT, 1.0),
    "moe_shared_expert_intermediate_size": _ABSENT,
    "mtp_num_layers": _ABSENT,
    "multi_latent_attention": _ABSENT,
    "no_rope_freq": _ABSENT,
    "normalization": ("RMSNorm",),
    "position_embedding_type": ("rope",),
    "qk_l2_norm": _ABSENT,
    "qk_layernorm": _ABSENT,
    "quick_geglu": _ABSENT,
    "rotary_interleaved": _ABSENT,
    "rotary_percent": (1.0,),
    "rotary_seq_len_interpolation_factor": _ABSENT,
    "softmax_type": ("vanilla",),
    "squared_relu": _ABSENT,
    "swiglu": (True,),
    "use_legacy_models": _ABSENT,
    "use_rope_scaling": _ABSENT,
    "window_attn_skip_freq": _ABSENT,
}
"""Argument -> the values with which Megatron-LM computes what Hugging Face's Mixtral and Mistral compute. One that a
release does not have is not looked for."""


@dataclass(frozen=True)
class Arguments:
    """What the conversion needs to know of a checkpoint's arguments."""

    shape: ModelShape
    layout: Layout
    padded_vocab: int
    """Rows of the embedding."""


def read(args: argparse.Namespace, where: str, *, vocab_size: int | None = None) -> Arguments:
    """What the arguments of a checkpoint say.

    Args:
        args: as saved by Megatron-LM 0.13 or later.
        where: what error messages call them.
        vocab_size: of the tokenizer. Megatron-LM only saves the padded size, which is taken without it.

    Raises:
        CheckpointError: an argument is missing, they contradict each other, or the model is no Mixtral or Mistral.
    """
    for name, allowed in _REQUIRED.items():
        found = getattr(args, name, allowed[0])
        if found not in allowed:
            wanted = " or ".join(map(repr, allowed if allowed[: len(_ABSENT)] != _ABSENT else (None,)))
            raise CheckpointError(
                f"{where}: the model was trained with {name} = {found!r}; Hugging Face's Mixtral and Mistral have "
                f"{wanted}, and cannot hold these weights."
            )
    try:
        padded = int(args.padded_vocab_size)
        shape, layout = _shape(args, padded if vocab_size is None else vocab_size), _layout(args)
        if shape.vocab_size > padded:
            raise CheckpointError(f"the vocabulary has {shape.vocab_size} tokens, but the embedding {padded} rows.")
        layout.check(shape)
    except AttributeError as error:
        raise CheckpointError(f"{where} lacks {error.name}: was it written by Megatron-LM?") from error
    except (CheckpointError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    return Arguments(shape, layout, padded)


def _shape(args: argparse.Namespace, vocab_size: int) -> ModelShape:
    heads, experts = args.num_attention_heads, getattr(args, "num_experts", None) or 0
    ffn = getattr(args, "moe_ffn_hidden_size", None) if experts else None
    frequency = getattr(args, "moe_layer_freq", 1)
    if experts and set(frequency if isinstance(frequency, list) else [frequency]) != {1}:
        raise CheckpointError(f"moe_layer_freq is {frequency}, but every layer of a Mixtral has experts.")
    window = getattr(args, "window_size", None)
    return ModelShape(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=ffn or args.ffn_hidden_size,
        num_attention_heads=heads,
        num_query_groups=args.num_query_groups if args.group_query_attention else heads,
        head_dim=args.kv_channels,
        vocab_size=vocab_size,
        num_experts=experts,
        topk=args.moe_router_topk if experts else 0,
        rotary_base=float(args.rotary_base),
        # The name of the configuration class, since the flags are made from it (0.18).
        norm_epsilon=args.layernorm_epsilon if hasattr(args, "layernorm_epsilon") else args.norm_epsilon,
        max_position_embeddings=args.max_position_embeddings,
        # Megatron-LM counts the tokens to the left of a token, Hugging Face also the token itself.
        sliding_window=window[0] + 1 if window and window[0] >= 0 else None,
        tied=not args.untie_embeddings_and_output_weights,
    )


def _layout(args: argparse.Namespace) -> Layout:
    pipeline = args.pipeline_model_parallel_size
    layout = Layout(
        tensor=args.tensor_model_parallel_size,
        pipeline=pipeline,
        expert=getattr(args, "expert_model_parallel_size", 1),
        expert_tensor=getattr(args, "expert_tensor_parallel_size", None) or 0,
        virtual=getattr(args, "virtual_pipeline_model_parallel_size", None) or 1,
        first_layers=getattr(args, "decoder_first_pipeline_num_layers", None),
        last_layers=getattr(args, "decoder_last_pipeline_num_layers", None),
    )
    if text := getattr(args, "pipeline_model_parallel_layout", None):
        # The configuration holds the parsed object, which keeps the text.
        stages = tuple(_stages(str(getattr(text, "input_data", text))))
        return replace(layout, virtual=len(stages) // pipeline, stages=stages)
    embedding = bool(getattr(args, "account_for_embedding_in_pipeline_split", False))
    loss = bool(getattr(args, "account_for_loss_in_pipeline_split", False))
    if embedding or loss:
        first, *rest = layout.stage_sizes(args.num_layers + embedding + loss)
        sizes = [first - embedding, *rest]
        sizes[-1] -= loss
        return replace(layout, stages=tuple(sizes))
    return layout


def _stages(text: str) -> Iterator[int]:
    """Layers of each stage of a `--pipeline-model-parallel-layout`, such as `Et*3|(tt|)*29|tL`."""
    for stage in _unrolled(text.replace(",", "")).split("|"):
        if unknown := set(stage) - set("EtL"):
            raise CheckpointError(
                f"pipeline_model_parallel_layout {text!r} has {', '.join(sorted(unknown))}; only E, t and L are layers "
                f"of Mixtral and Mistral."
            )
        yield stage.count("t")


def _unrolled(text: str) -> str:
    """`xt*3` is `xttt`, `(tt|)*2` is `tt|tt|`."""
    for repeated in (r"\(([^)]+)\)\*(\d+)", r"(.)\*(\d+)"):
        text = re.sub(repeated, lambda match: match[1] * int(match[2]), text)
    return text


def write(
    shape: ModelShape, layout: Layout, padded_vocab: int, dtype: torch.dtype, build: Build, checkpoint_format: str
) -> argparse.Namespace:
    """Arguments for a new checkpoint: what upstream compares when it loads one, and what `--use-checkpoint-args` takes.

    `read` of them gives back the shape and the layout.
    """
    moe = bool(shape.num_experts)
    model = {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "group_query_attention": True,
        "num_query_groups": shape.num_query_groups,
        "kv_channels": shape.head_dim,
        "padded_vocab_size": padded_vocab,
        "max_position_embeddings": shape.max_position_embeddings,
        "add_position_embedding": True,
        "position_embedding_type": "rope",
        "use_rotary_position_embeddings": False,
        # The flag takes whole numbers in some releases.
        "rotary_base": int(shape.rotary_base) if shape.rotary_base.is_integer() else shape.rotary_base,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "normalization": "RMSNorm",
        "norm_epsilon": shape.norm_epsilon,
        "layernorm_epsilon": shape.norm_epsilon,
        "swiglu": True,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "squared_relu": False,
        "apply_query_key_layer_scaling": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "untie_embeddings_and_output_weights": not shape.tied,
        "window_size": None if shape.sliding_window is None else (shape.sliding_window - 1, 0),
        "transformer_impl": build.transformer_impl,
        "params_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "ckpt_format": checkpoint_format,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }
    experts = {
        "num_experts": shape.num_experts or None,
        "moe_ffn_hidden_size": shape.ffn_hidden_size if moe else None,
        "moe_layer_freq": 1,
        "moe_router_topk": shape.topk or 2,
        "moe_router_pre_softmax": False,
        "moe_router_score_function": "softmax",
        "moe_router_enable_expert_bias": False,
        "moe_grouped_gemm": moe and build.moe_grouped_gemm,
    }
    return argparse.Namespace(**model, **experts, **_sizes(layout, shape.num_layers))


def _sizes(layout: Layout, num_layers: int) -> dict[str, Any]:
    sizes = layout.stage_sizes(num_layers)
    interleaved = layout.virtual > 1 and layout.stages is None
    even = interleaved and layout.first_layers is None and layout.last_layers is None
    text = None if layout.stages is None else "E" + "|".join("t" * count for count in sizes) + "L"
    return {
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.expert_tensor,
        "virtual_pipeline_model_parallel_size": layout.virtual if layout.virtual > 1 else None,
        "num_layers_per_virtual_pipeline_stage": sizes[0] if even else None,
        "num_virtual_stages_per_pipeline_rank": layout.virtual if interleaved and not even else None,
        "decoder_first_pipeline_num_layers": layout.first_layers,
        "decoder_last_pipeline_num_layers": layout.last_layers,
        "pipeline_model_parallel_layout": text,
    }


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor: int) -> int:
    """The rows that Megatron-LM gives to the embedding of `vocab_size` tokens (`--make-vocab-size-divisible-by`)."""
    multiple = divisible_by * tensor
    return -(-vocab_size // multiple) * multiple
