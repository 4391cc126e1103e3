"""``python -m benchmarks.workers.random_weights FOLDER``: a Mixtral of random weights, written layer by layer.

The shape is the JSON on standard input, a ``config.json``. The files are those that transformers writes; safetensors'
own writer makes them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

BELOW_TWO = ~0x4000_4000_4000_4000
"""Of four bfloat16 numbers, all bits but the highest of the exponents: finite, and smaller than 2."""


def main() -> None:
    """Write the folder; the index last."""
    folder, config = Path(sys.argv[1]), json.load(sys.stdin)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    places: dict[str, str] = {}
    shards = shapes(config)
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: random_bfloat16(*shape) for name, shape in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shapes(config: dict[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    """Name -> shape of the tensors of each shard: a layer each, then the rest."""
    return [dict(_layer(number, config)) for number in range(config["num_hidden_layers"])] + [dict(_rest(config))]


def random_bfloat16(*shape: int) -> torch.Tensor:
    """Random bits of a multiple of four numbers, which is several times faster than a distribution."""
    numbers = torch.empty(shape, dtype=torch.bfloat16)
    numbers.view(-1).view(torch.int64).random_(-(2**63), None).bitwise_and_(BELOW_TWO)
    return numbers


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


if __name__ == "__main__":
    main()
