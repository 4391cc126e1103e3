"""The norms, alone and in front of a linear layer, against float64."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import layer_norm

from ascend_patch.engine.errors import AscendPatchError
from tests.unit_tests.ops.checks import relative_error

HIDDEN = 48


def expected(x: torch.Tensor, config, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    x, weight = x.double(), weight.double() + config.layernorm_zero_centered_gamma
    if config.normalization == "LayerNorm":
        return layer_norm(x, (HIDDEN,), weight, bias.double(), config.layernorm_epsilon)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.layernorm_epsilon) * weight


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize("zero_centered", [False, True])
def test_norm(transformer_config: Callable, normalization: str, zero_centered: bool) -> None:
    from ascend_patch.modules.norm import Norm

    config = transformer_config(normalization=normalization, layernorm_zero_centered_gamma=zero_centered)
    norm = Norm(config, HIDDEN, eps=config.layernorm_epsilon)
    x = torch.randn(7, 2, HIDDEN)
    with torch.no_grad():
        assert relative_error(norm(x), expected(x, config, norm.weight, norm.bias)) < 1e-5  # initial: no scaling
        norm.weight.add_(torch.randn(HIDDEN))
        assert relative_error(norm(x), expected(x, config, norm.weight, norm.bias)) < 1e-5


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_parameters_carry_dtype_and_mark(transformer_config: Callable, sequence_parallel: bool) -> None:
    from ascend_patch.modules.norm import Norm

    config = transformer_config(normalization="LayerNorm", params_dtype=torch.bfloat16)
    config.sequence_parallel = sequence_parallel  # by itself an error for one rank
    norm = Norm(config, HIDDEN)
    for parameter in (norm.weight, norm.bias):
        assert parameter.dtype == torch.bfloat16
        assert parameter.sequence_parallel is sequence_parallel


def test_unknown_normalization(transformer_config: Callable) -> None:
    from ascend_patch.modules.norm import Norm

    config = transformer_config()
    config.normalization = "L2Norm"
    with pytest.raises(AscendPatchError, match=r"L2Norm .* RMSNorm and LayerNorm .* norm\.torch_norm"):
        Norm(config, HIDDEN)


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
def test_norm_in_front_of_a_linear_layer(transformer_config: Callable, normalization: str) -> None:
    """``Norm(x) @ weight.T`` with TransformerEngine's names, forward and backward."""
    from ascend_patch.modules.linear import LayerNormColumnParallelLinear

    config = transformer_config(normalization=normalization)
    layer = LayerNormColumnParallelLinear(
        HIDDEN,
        36,
        config=config,
        init_method=torch.nn.init.normal_,
        gather_output=False,
        bias=False,
        skip_bias_add=False,
        is_expert=False,
    )
    names = {"weight", "layer_norm_weight"} | ({"layer_norm_bias"} if normalization == "LayerNorm" else set())
    assert {name for name, _ in layer.named_parameters()} == names
    with torch.no_grad():
        layer.layer_norm_weight.add_(torch.randn(HIDDEN))
    x = torch.randn(7, 2, HIDDEN, requires_grad=True)
    output, bias = layer(x)
    assert bias is None
    wide = [t.detach().double().requires_grad_() for t in (x, layer.layer_norm_weight, layer.weight)]
    reference = expected(wide[0], config, wide[1], layer.layer_norm_bias) @ wide[2].t()
    assert relative_error(output.detach(), reference.detach()) < 1e-5
    grad = torch.randn_like(output)
    found = torch.autograd.grad(output, (x, layer.layer_norm_weight, layer.weight), grad)
    for one, other in zip(found, torch.autograd.grad(reference, wide, grad.double()), strict=True):
        assert relative_error(one, other) < 1e-5
