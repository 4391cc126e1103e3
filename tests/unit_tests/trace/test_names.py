"""Names of a model's modules and parameters, whichever part of it a rank holds."""

import pytest
import torch
from torch import nn

from ascend_patch.trace.names import Named, named_modules, named_parameters, parts


class Layer(nn.Module):
    """A transformer layer with experts, one parameter for all (ours), one for each (TransformerEngine), or modules."""

    def __init__(self, number: int, kind: str) -> None:
        super().__init__()
        self.layer_number = number
        self.input_layernorm = nn.LayerNorm(2)
        self.mlp = nn.Module()
        self.mlp.experts = experts = nn.Module()
        experts.num_local_experts = 2
        if kind == "sequential":
            experts.local_experts = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(2))
            return
        experts.linear_fc1 = nn.Module()
        weights = {"weight": (2, 3, 4)} if kind == "stacked" else {"weight0": (3, 4), "weight1": (3, 4)}
        for name, shape in weights.items():
            experts.linear_fc1.register_parameter(name, nn.Parameter(torch.randn(shape)))


def chunk(first_layer: int, kind: str = "stacked") -> nn.Module:
    """Two layers of a model, of which others are elsewhere."""
    root = nn.Module()
    root.decoder = nn.Module()
    root.decoder.layers = nn.ModuleList(Layer(first_layer + number + 1, kind) for number in range(2))
    return root


def test_modules_of_a_later_stage_and_of_later_experts() -> None:
    found = {named.name: named for named in named_modules(chunk(first_layer=4), expert_rank=3)}
    assert list(found)[:2] == ["model", "decoder"]
    assert "decoder.layers.4.input_layernorm" in found and "decoder.layers.5" in found
    assert not any(".layers.0" in name for name in found)
    grouped = found["decoder.layers.5.mlp.experts.linear_fc1"]
    assert (grouped.first_expert, grouped.experts) == (6, 2)
    names = [named.name for named in named_modules(chunk(0, "sequential"), expert_rank=1)]
    assert "decoder.layers.1.mlp.experts.local_experts.3" in names


@pytest.mark.parametrize("kind", ["stacked", "each"])
def test_parameters_of_experts_have_transformer_engines_names(kind: str) -> None:
    root = chunk(2, kind)
    found = [one for named in named_modules(root, 1) for one in named_parameters(named)]
    names = [name for name, _, _ in found]
    assert len(names) == len(set(names)) == 2 * (2 + 2)
    assert names[2:4] == [f"decoder.layers.2.mlp.experts.linear_fc1.weight{e}" for e in (2, 3)]
    # Every element of every parameter, once.
    seen = torch.cat([parameter.detach().reshape(-1)[elements] for _, parameter, elements in found])
    whole = torch.cat([parameter.detach().reshape(-1) for parameter in root.parameters()])
    assert torch.equal(seen, whole)


def test_outputs_of_experts_are_told_apart_by_their_rows() -> None:
    grouped = Named("mlp.experts.linear_fc1", nn.Module(), first_expert=4, experts=3)
    output = torch.randn(7, 2)
    pieces = dict(parts(grouped, (torch.randn(7, 5), [4, 0, 3]), output))
    assert list(pieces) == [f"mlp.experts.linear_fc1[{e}]" for e in (4, 5, 6)]
    assert torch.equal(torch.cat(list(pieces.values())), output)
    for arguments in ((), (torch.randn(7, 5), torch.tensor([4, 0, 3])), (torch.randn(7, 5), [4, 0, 4])):
        assert parts(grouped, arguments, output) == [("mlp.experts.linear_fc1", output)]
