"""Memory: weights as conversion deals them out, the rest as formulas say, and as was counted once."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ascend_patch.checkpoint import layout as checkpoint_layout
from ascend_patch.checkpoint.partition import dense_shards, expert_shards
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.planning import memory
from ascend_patch.planning.layout import Layout, Training
from ascend_patch.planning.models import MODELS, Model
from tests.unit_tests.planning.small import LAYOUTS, MISTRAL, MIXTRAL, TRAINING

PARTS = [
    Layout(1),
    Layout(1, tp=2, etp=2, pp=2, ep=2),
    Layout(2, tp=4, pp=4, ep=4),
    Layout(2, tp=2, etp=1, pp=2, vpp=2, ep=4),
    Layout(8, tp=1, etp=1, pp=4, ep=1),
]


def dealt_out(model: Model, layout: Layout, stage: int) -> tuple[int, int]:
    """Weights and experts' weights of a rank, by the arithmetic of ``ascend_patch.checkpoint``."""
    shape = ModelShape(
        model.layers, model.hidden, model.ffn, model.heads, model.groups, model.head_dim, model.vocab,
        num_experts=model.experts, topk=model.topk,
    )  # fmt: skip
    dealt = checkpoint_layout.Layout(layout.tp, layout.pp, layout.ep, layout.etp, layout.vpp)
    padded = -(-model.vocab // layout.tp) * layout.tp
    stages = range(stage, layout.pp * layout.vpp, layout.pp)

    def number(shards: Iterator) -> int:
        return sum(math.prod(shard.shape) for shard in shards)

    dense = sum(number(dense_shards(shape, dealt, padded, each, 0)) for each in stages)
    return dense, sum(number(expert_shards(shape, dealt, each, 0, 0)) for each in stages)


@pytest.mark.parametrize("model", [MIXTRAL, MISTRAL, *MODELS.values()], ids=lambda model: model.name)
@pytest.mark.parametrize("layout", PARTS, ids=str)
def test_weights_are_those_of_a_converted_checkpoint(model: Model, layout: Layout) -> None:
    if not model.experts:
        layout = replace(layout, ep=1, etp=1)
    for stage in range(layout.pp):
        found = memory.parameters(model, layout, stage)
        dense, experts = dealt_out(model, layout, stage)
        assert (found.dense, found.experts) == (dense, experts)


def test_bytes_of_a_weight() -> None:
    """18, or 6 and 12 of which each data parallel rank has its part."""
    layout = Layout(4, ep=2)
    found, number = memory.memory(TRAINING, layout, 0), memory.parameters(MIXTRAL, layout, 0)
    assert (found.weights, found.gradients) == (2 * number.all, 4 * number.all)
    assert found.optimizer == 12 * number.dense // 4 + 12 * number.experts // 2
    whole = memory.memory(TRAINING, replace(layout, distributed_optimizer=False), 0)
    assert whole.optimizer == 12 * number.all


def test_activations_of_a_layer() -> None:
    """Tensor by tensor, of 512 tokens in 128 features, 2 of 4 experts of 256."""
    attention = 2 * 131072 + 2048 + 2 * 65536 + 2 * 131072 + 2 * 131072  # norm, keys and values, queries, result
    experts = 2 * 131072 + 2048 + 2 * 8192 + 2048 + 4096 + 262144 + 1048576 + 2048 + 524288
    assert memory.layer_activations(TRAINING, LAYOUTS["one"]) == attention + experts


@pytest.mark.parametrize(
    ("layout", "stage", "chunks"),
    [
        (Layout(1), 0, 1),
        (Layout(1, pp=4), 0, 4),
        (Layout(1, pp=4), 3, 1),
        (Layout(1, pp=4, vpp=2), 0, 11),
        (Layout(1, pp=4, vpp=2), 3, 5),
        (Layout(8, pp=4), 0, 1),
    ],
    ids=str,
)
def test_what_is_under_way(layout: Layout, stage: int, chunks: int) -> None:
    """No more than there is: with 8 data parallel ranks, one micro batch."""
    assert memory.under_way(TRAINING, layout, stage) == chunks


def test_recomputation_and_splitting_save_memory() -> None:
    training = Training(MODELS["8x7b"], 4096, 128)
    plain = memory.memory(training, Layout(2, pp=8, ep=2), 0)
    for other in (Layout(2, pp=8, ep=2, recompute=True), Layout(2, tp=2, etp=2, pp=4, ep=2)):
        assert memory.memory(training, other, 0).activations < 0.6 * plain.activations


COUNTED = {
    ("one", 0): 58802176,
    ("tp2", 0): 32113152,
    ("ep2", 0): 41666048,
    ("pp2", 0): 37392384,
    ("pp2", 1): 34774528,
    ("vpp2", 0): 40896000,
    ("vpp2", 1): 37538304,
    ("tp2_ep2", 0): 31901696,
    ("recompute", 0): 30191104,
}
"""Peak memory of a step, in bytes, that ``tests/system_tests/test_planning.py`` counted once."""


@pytest.mark.parametrize(("name", "stage"), COUNTED)
def test_all_of_it_is_what_was_counted(name: str, stage: int) -> None:
    found = memory.memory(TRAINING, LAYOUTS[name], stage)
    assert found.total == pytest.approx(COUNTED[name, stage], rel=0.05)
