"""What tests of conversions share: comparing two Hugging Face folders, and the layouts of a matrix."""

from pathlib import Path

import torch
from safetensors import safe_open


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor, as safetensors reads them."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            found |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118  (it is no dict)
    return found


def check_identical(folder: Path, original: Path) -> None:
    """Both folders hold the same tensors, bit by bit."""
    found, expected = tensors(folder), tensors(original)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert found[name].view(torch.uint8).equal(tensor.view(torch.uint8)), name


def layouts(num_layers: int = 6) -> dict[str, dict]:
    """TP 1, 2, 4 x PP 1, 2, 4 x EP 1, 2, 4, 8, each with another choice of uneven and virtual stages and ETP.

    Name -> options of a conversion. Format torch cannot hold every layout: those with more expert tensor ranks than
    tensor ranks are there for torch_dist only.
    """
    pipelines = {
        1: [{}],
        2: [{}, {"first_layers": 2}, {"layers_per_virtual_stage": num_layers // 2}, {"layers_per_virtual_stage": 1}],
        4: [{"first_layers": 1, "last_layers": 1}, {"first_layers": 3}, {"last_layers": 3}],
    }
    found = {}
    for tensor in (1, 2, 4):
        for pipeline, choices in pipelines.items():
            for expert in (1, 2, 4, 8):
                number = len(found)
                options = {"tensor": tensor, "pipeline": pipeline, "expert": expert}
                options |= choices[(number + number // 4) % len(choices)]
                if number % 3:
                    options["expert_tensor"] = (1, 2, 4)[number % 7 % 3]
                name = "-".join(f"{key}{value}" for key, value in options.items())
                found[name] = options
    return found
