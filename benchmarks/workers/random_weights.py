"""``python -m benchmarks.workers.random_weights FOLDER``: a Mixtral of random weights, written layer by layer.

The shape is the JSON on standard input, a ``config.json``. The files are those that transformers writes; safetensors'
own writer makes them.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.weights import shapes

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


def random_bfloat16(*shape: int) -> torch.Tensor:
    """Random bits of a multiple of four numbers, which is several times faster than a distribution."""
    numbers = torch.empty(shape, dtype=torch.bfloat16)
    numbers.view(-1).view(torch.int64).random_(-(2**63), None).bitwise_and_(BELOW_TWO)
    return numbers


if __name__ == "__main__":
    main()
