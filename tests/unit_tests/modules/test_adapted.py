"""Layers with adapters against W + alpha / r * B A, in float64, and what their checkpoints hold."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from ascend_patch.engine.errors import AscendPatchError
from tests.unit_tests.ops.checks import relative_error

HIDDEN, FFN, EXPERTS, RANK, ALPHA = 48, 40, 3, 4, 8
TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "router")


@pytest.fixture
def layer(transformer_config: Callable) -> Callable:
    """layer(dense=False, dropout=0.0): a layer's five linear modules with adapters, none of whose ``B`` is zero."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.moe.router import TopKRouter

    from ascend_patch.modules.adapted import attach
    from ascend_patch.modules.grouped_linear import ColumnParallelGroupedLinear, RowParallelGroupedLinear
    from ascend_patch.modules.linear import LayerNormColumnParallelLinear
    from ascend_patch.modules.lora import Lora

    def make(targets: tuple[str, ...] = TARGETS, dropout: float = 0.0) -> torch.nn.Module:
        groups = ProcessGroupCollection.use_mpu_process_groups()
        config = transformer_config(params_dtype=torch.float64, perform_initialization=True)
        linear = {"config": config, "init_method": torch.nn.init.normal_, "bias": False, "skip_bias_add": False}
        grouped = {"config": config, "init_method": torch.nn.init.normal_, "bias": False, "pg_collection": groups}
        attention = torch.nn.Module()
        attention.linear_qkv = LayerNormColumnParallelLinear(HIDDEN, 60, gather_output=False, **linear)
        attention.linear_proj = RowParallelLinear(HIDDEN, HIDDEN, input_is_parallel=True, **linear)
        experts = torch.nn.Module()
        experts.linear_fc1 = ColumnParallelGroupedLinear(EXPERTS, HIDDEN, 2 * FFN, **grouped)
        experts.linear_fc2 = RowParallelGroupedLinear(EXPERTS, FFN, HIDDEN, **grouped)
        mlp = torch.nn.Module()
        mlp.experts, mlp.router = experts, TopKRouter(config, groups)
        layer = torch.nn.Module()
        layer.self_attention, layer.mlp, layer.layer_number = attention, mlp, 1
        model = SimpleNamespace(decoder=SimpleNamespace(layers=[layer]), pre_process=False)
        model.requires_grad_ = layer.requires_grad_
        attach(model, Lora(RANK, ALPHA, dropout, targets, seed=1))
        for name, parameter in layer.named_parameters():
            if name.endswith("lora.B"):
                torch.nn.init.normal_(parameter)
        assert ColumnParallelLinear in type(attention.linear_qkv).__mro__
        return layer

    return make


def merged(module: torch.nn.Module) -> torch.Tensor:
    """The weight that the layer and its adapter amount to."""
    return (module.weight + ALPHA / RANK * module.lora.B @ module.lora.A).detach().requires_grad_()


def gradients_of_merged(module: torch.nn.Module, weight_grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of ``A`` and ``B``, by the chain rule."""
    scaling = ALPHA / RANK
    return scaling * module.lora.B.mT @ weight_grad, scaling * weight_grad @ module.lora.A.mT


def check(module: torch.nn.Module, run: Callable, reference: Callable, x: torch.Tensor) -> None:
    """``run(x)`` is ``reference(x, merged weight)``, with its gradients; only the adapter gets any."""
    inputs, weight = [x.clone().requires_grad_() for _ in range(2)], merged(module)
    found, expected = run(inputs[0]), reference(inputs[1], weight)
    assert relative_error(found, expected) < 1e-12
    grad = torch.randn_like(found)
    found.backward(grad)
    expected.backward(grad)
    assert relative_error(inputs[0].grad, inputs[1].grad) < 1e-12
    for parameter, wanted in zip((module.lora.A, module.lora.B), gradients_of_merged(module, weight.grad), strict=True):
        assert relative_error(parameter.grad, wanted) < 1e-12
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable == {"lora.A", "lora.B"}


def test_column_after_a_norm(layer: Callable) -> None:
    module = layer().self_attention.linear_qkv
    torch.nn.init.normal_(module.layer_norm_weight)

    def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.config.layernorm_epsilon)
        return x * module.layer_norm_weight @ weight.T

    check(module, lambda x: module(x)[0], reference, torch.randn(5, 2, HIDDEN, dtype=torch.float64))


def test_row(layer: Callable) -> None:
    module = layer().self_attention.linear_proj
    x = torch.randn(5, 2, HIDDEN, dtype=torch.float64)
    check(module, lambda x: module(x)[0], lambda x, weight: x @ weight.T, x)


def test_router(layer: Callable) -> None:
    module = layer().mlp.router
    check(module, module.gating, lambda x, weight: x @ weight.T, torch.randn(5, 2, HIDDEN, dtype=torch.float64))


@pytest.mark.parametrize("tokens_per_expert", [[5, 1, 7], [13, 0, 0]])
@pytest.mark.parametrize("name", ["linear_fc1", "linear_fc2"])
def test_experts(layer: Callable, name: str, tokens_per_expert: list[int]) -> None:
    module = layer().mlp.experts.get_submodule(name)

    def reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        parts = zip(x.split(tokens_per_expert), weight, strict=True)
        return torch.cat([part @ expert.T for part, expert in parts])

    x = torch.randn(13, module.weight.shape[2], dtype=torch.float64)
    check(module, lambda x: module(x, tokens_per_expert)[0], reference, x)


def test_dropout_is_of_the_adapters_input_and_only_in_training(layer: Callable) -> None:
    for module, x, rest in (
        (layer(dropout=0.5).self_attention.linear_proj, torch.ones(5, 2, HIDDEN, dtype=torch.float64), ()),
        (layer(dropout=0.5).mlp.experts.linear_fc2, torch.ones(13, FFN, dtype=torch.float64), ([5, 1, 7],)),
    ):
        first, second = module(x, *rest)[0], module(x, *rest)[0]
        assert not torch.equal(first, second)
        module.eval()
        assert torch.equal(module(x, *rest)[0], module(x, *rest)[0])
        draws = [module.train()(x, *rest)[0] for _ in range(400)]
        mean, whole = torch.stack(draws).mean(0), module.eval()(x, *rest)[0]
        spread = torch.stack(draws).std(0) / 400**0.5
        assert ((mean - whole).abs() <= 6 * spread).all()


def test_the_start_depends_on_layer_and_seed_alone(layer: Callable) -> None:
    from ascend_patch.modules.lora import Lora

    torch.manual_seed(1)
    first = layer()
    torch.manual_seed(2)
    second = layer(targets=TARGETS[::-1])
    drawn = {name: parameter for name, parameter in first.named_parameters() if name.endswith("lora.A")}
    assert len(drawn) == len(TARGETS)
    for name, parameter in drawn.items():
        assert torch.equal(parameter, second.get_parameter(name))
    assert not torch.equal(*first.mlp.experts.linear_fc1.lora.A[:2])
    start = Lora(64, 1, 0.0, (), 5).draw("name", 300)
    assert start.abs().max() <= 300**-0.5 and abs(start.std() * 900**0.5 - 1) < 0.05  # uniform
    assert not torch.equal(start, Lora(64, 1, 0.0, (), 6).draw("name", 300))


def test_sharded_state_dict(layer: Callable) -> None:
    """One global tensor for all layers, and all experts."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    of_two_layers = ((0, 1, 2),)
    experts = layer().mlp.experts
    found = experts.linear_fc1.sharded_state_dict("fc1.", of_two_layers)
    assert found["fc1.lora.A"].global_shape == (2, EXPERTS, RANK, HIDDEN)
    assert isinstance(found["fc1.lora.B"], ShardedTensorFactory)
    halves = found["fc1.lora.B"].build()
    assert [half.global_shape for half in halves] == [(2, EXPERTS, 2 * FFN, RANK)] * 2
    assert [half.global_offset for half in halves] == [(1, 0, 0, 0), (1, 0, FFN, 0)]
    merged = found["fc1.lora.B"].merge_fn([half.data for half in halves])
    assert torch.equal(merged, experts.linear_fc1.lora.B)
    found = experts.linear_fc2.sharded_state_dict("fc2.", of_two_layers)
    assert found["fc2.lora.B"].global_shape == (2, EXPERTS, HIDDEN, RANK)
    found = layer().self_attention.linear_qkv.sharded_state_dict("qkv.", of_two_layers, {"dp_cp_group": None})
    assert found["qkv.lora.B"].global_shape == (2, 60, RANK)


def test_what_cannot_be_adapted(layer: Callable) -> None:
    from ascend_patch.modules.adapted import attach
    from ascend_patch.modules.lora import Lora

    broken = layer(targets=())
    model = SimpleNamespace(decoder=SimpleNamespace(layers=[broken]), requires_grad_=broken.requires_grad_)

    def adapt(target: str) -> None:
        attach(model, Lora(RANK, ALPHA, 0.0, (target,), 1))

    broken.self_attention.linear_qkv = torch.nn.Linear(2, 2)
    with pytest.raises(AscendPatchError, match="is a Linear, which cannot have an adapter"):
        adapt("linear_qkv")
    del broken.self_attention.linear_proj
    with pytest.raises(AscendPatchError, match=r"layer 1 has no self_attention.linear_proj"):
        adapt("linear_proj")
    del broken.mlp.experts.linear_fc2
    with pytest.raises(AscendPatchError, match="adapters of experts need --moe-grouped-gemm"):
        adapt("linear_fc2")
