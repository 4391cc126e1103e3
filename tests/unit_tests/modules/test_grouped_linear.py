"""Grouped experts against upstream's SequentialMLP: numbers, and what checkpoints show of them."""

from collections.abc import Callable

import pytest
import torch

from ascend_patch.engine.errors import AscendPatchError
from tests.unit_tests.ops.checks import relative_error

EXPERTS = 3


@pytest.fixture
def experts(transformer_config: Callable) -> tuple[torch.nn.Module, torch.nn.Module]:
    """TEGroupedMLP on our layers, and SequentialMLP, with the same weights."""
    from megatron.core.models.backends import LocalSpecProvider
    from megatron.core.process_groups_config import ProcessGroupCollection

    from ascend_patch.features.experts import grouped_mlp_modules

    config, groups = transformer_config(), ProcessGroupCollection.use_mpu_process_groups()
    original = LocalSpecProvider.grouped_mlp_modules
    grouped = grouped_mlp_modules(original)(LocalSpecProvider(), True)(EXPERTS, config, pg_collection=groups)
    sequential = original(LocalSpecProvider(), False)(EXPERTS, config, pg_collection=groups)
    with torch.no_grad():
        for e, expert in enumerate(sequential.local_experts):
            expert.linear_fc1.weight.copy_(grouped.linear_fc1.weight[e])
            expert.linear_fc2.weight.copy_(grouped.linear_fc2.weight[e])
    return grouped, sequential


@pytest.mark.parametrize("tokens_per_expert", [[5, 1, 7], [13, 0, 0], [0, 6, 7]])
def test_like_sequential(experts: tuple, tokens_per_expert: list[int]) -> None:
    grouped, sequential = experts
    tokens, probs = torch.randn(sum(tokens_per_expert), 48), torch.rand(sum(tokens_per_expert))
    grad = torch.randn_like(tokens)
    results = []
    for module in experts:
        inputs = [tokens.clone().requires_grad_(), probs.clone().requires_grad_()]
        output, bias = module(inputs[0], torch.tensor(tokens_per_expert), inputs[1])
        assert bias is None
        output.backward(grad)
        results.append([output.detach(), *(t.grad for t in inputs)])
    results[0] += [grouped.linear_fc1.weight.grad, grouped.linear_fc2.weight.grad]
    for layer in ("linear_fc1", "linear_fc2"):
        results[1].append(torch.stack([getattr(e, layer).weight.grad for e in sequential.local_experts]))
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("main_grad_dtype", [torch.float32, torch.bfloat16])
def test_gradients_accumulate_in_main_grad(experts: tuple, main_grad_dtype: torch.dtype) -> None:
    """With what DistributedDataParallel gives a parameter; its hook must find a gradient that it drops."""
    grouped, _ = experts
    tokens_per_expert = torch.tensor([4, 0, 7])
    weights = [grouped.linear_fc1.weight, grouped.linear_fc2.weight]
    steps = [(torch.randn(11, 48), torch.rand(11)) for _ in range(2)]
    expected = [torch.zeros_like(weight, dtype=main_grad_dtype) for weight in weights]
    for tokens, probs in steps:
        grouped(tokens, tokens_per_expert, probs)[0].square().sum().backward()
        for weight, total in zip(weights, expected, strict=True):
            total.add_(weight.grad)
            weight.grad = None

    hooked = []
    for weight in weights:
        weight.main_grad = torch.zeros_like(weight, dtype=main_grad_dtype)
        weight.grad_added_to_main_grad = False
        weight.register_post_accumulate_grad_hook(lambda weight: hooked.append(weight.grad is not None))
    for layer in (grouped.linear_fc1, grouped.linear_fc2):
        layer.accumulates_in_place = True
    for tokens, probs in steps:
        grouped(tokens, tokens_per_expert, probs)[0].square().sum().backward()
        assert all(weight.grad_added_to_main_grad for weight in weights)
    assert hooked == [True] * 4
    for weight, total in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.main_grad, total)


def test_main_grad_stays_untouched_without_gradient_accumulation_fusion(experts: tuple) -> None:
    grouped, _ = experts
    weight = grouped.linear_fc1.weight
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros_like(weight), False
    grouped(torch.randn(3, 48), torch.tensor([3, 0, 0]), torch.rand(3))[0].sum().backward()
    assert not weight.main_grad.any() and not weight.grad_added_to_main_grad
    assert weight.grad.any()


def test_state_dict_has_the_names_of_transformer_engine(experts: tuple) -> None:
    grouped, _ = experts
    layer = grouped.linear_fc1
    state = layer.state_dict()
    assert list(state) == [f"weight{e}" for e in range(EXPERTS)]
    wanted = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    # TransformerEngine adds an extra state, for fp8.
    assert str(layer.load_state_dict({**wanted, "_extra_state": None})) == "<All keys matched successfully>"
    assert torch.equal(layer.weight, torch.stack(list(wanted.values())))
    del wanted["weight1"]
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(wanted)


def described(module: torch.nn.Module) -> dict[tuple, tuple]:
    """What a distributed checkpoint of ``module`` consists of: identity of each shard -> its description."""
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories

    sharded = module.sharded_state_dict("mlp.", ((0, 1, 2),))  # second of two layers
    apply_factories(sharded)
    shards: list = []

    def collect(value: object) -> None:
        if isinstance(value, ShardedTensor | ShardedObject):
            shards.append(value)
        else:
            for part in value.values() if isinstance(value, dict) else value:
                collect(part)

    collect(sharded)
    return {
        (shard.key, shard.global_offset): (shard.global_shape, shard.replica_id[2])
        if isinstance(shard, ShardedObject)
        else (shard.global_shape, shard.replica_id[2], shard.dtype, tuple(shard.data.flatten().tolist()))
        for shard in shards
    }


def test_distributed_checkpoint_is_that_of_sequential_experts(experts: tuple) -> None:
    """Keys, places in the global tensors, values and extra states, so that either loads the other's."""
    grouped, sequential = experts
    found = described(grouped)
    assert found == described(sequential)
    assert len(found) == EXPERTS * (2 + 1) + EXPERTS * 2  # gate and up, down; two extra states


def test_loading_shards_restores_the_stack(experts: tuple) -> None:
    from megatron.core.dist_checkpointing.mapping import apply_factories, apply_factory_merges

    grouped, _ = experts
    for layer in (grouped.linear_fc1, grouped.linear_fc2):
        sharded = {name: part for name, part in layer.sharded_state_dict().items() if name == "weight"}
        loaded, factories = dict(sharded), dict(sharded)
        apply_factories(loaded)
        loaded["weight"] = [shard.data.clone() for shard in loaded["weight"]]
        assert torch.equal(apply_factory_merges(loaded, factories)["weight"], layer.weight)


def test_gradients_are_reduced_in_the_right_group(transformer_config: Callable) -> None:
    """``allreduce`` False sends a weight to the expert data parallel group."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from ascend_patch.modules.grouped_linear import ColumnParallelGroupedLinear

    config = transformer_config()
    for expert_parallel in (1, 3):
        config.expert_model_parallel_size = expert_parallel
        layer = ColumnParallelGroupedLinear(
            EXPERTS,
            48,
            80,
            config=config,
            init_method=torch.nn.init.normal_,
            bias=False,
            pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        )
        assert layer.weight.allreduce is (expert_parallel == 1)
        assert not torch.equal(layer.weight[0], layer.weight[1])


def test_bias_is_refused(transformer_config: Callable) -> None:
    from ascend_patch.modules.grouped_linear import RowParallelGroupedLinear

    with pytest.raises(AscendPatchError, match="--disable-bias-linear"):
        RowParallelGroupedLinear(
            EXPERTS, 40, 48, config=transformer_config(), init_method=None, bias=True, pg_collection=None
        )
