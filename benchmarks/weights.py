"""The tensors of a Mixtral in Hugging Face's names: their shapes, and how many bytes they are in bfloat16.

``config`` is everywhere the content of a ``config.json``.
"""

import math
from collections.abc import Iterator
from typing import Any

BYTES = 2


def shapes(config: dict[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    """Name -> shape of the tensors of each shard: a layer each, then the rest."""
    return [dict(_layer(number, config)) for number in range(config["num_hidden_layers"])] + [dict(_rest(config))]


def size(config: dict[str, Any]) -> int:
    """Bytes of the whole model."""
    return BYTES * sum(math.prod(shape) for shard in shapes(config) for shape in shard.values())


def experts_size(config: dict[str, Any]) -> int:
    """Bytes of the experts of one layer."""
    return BYTES * sum(math.prod(shape) for name, shape in _layer(0, config) if ".experts." in name)


def _layer(number: int, config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    keys = head * config["num_key_value_heads"]
    prefix = f"model.layers.{number}"
    yield f"{prefix}.input_layernorm.weight", (hidden,)
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    for name, shape in {"q": (hidden, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, hidden)}.items():
        yield f"{prefix}.self_attn.{name}_proj.weight", shape
    yield f"{prefix}.block_sparse_moe.gate.weight", (config["num_local_experts"], hidden)
    for expert in range(config["num_local_experts"]):
        for name, shape in {"w1": (ffn, hidden), "w2": (hidden, ffn), "w3": (ffn, hidden)}.items():
            yield f"{prefix}.block_sparse_moe.experts.{expert}.{name}.weight", shape


def _rest(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (config["vocab_size"], config["hidden_size"])
    yield "model.norm.weight", (config["hidden_size"],)
    yield "lm_head.weight", (config["vocab_size"], config["hidden_size"])
