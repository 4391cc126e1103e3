"""Every shard consists of the rectangles that plain torch puts there, and all shards together are the model."""

import torch
from hypothesis import given, settings

from ascend_patch.checkpoint.arguments import padded_vocab_size
from ascend_patch.checkpoint.layout import Layout
from ascend_patch.checkpoint.partition import Shard, Split, dense_shards, expert_shards
from ascend_patch.checkpoint.shape import ModelShape
from tests.unit_tests.checkpoint.models import Reference, laid_out, numbered


def assembled(shard: Shard, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The shard's tensor; rows beyond the vocabulary are 0."""
    found = torch.zeros(shard.shape).reshape(-1, shard.shape[-1])
    for one in shard.rectangles():
        source = tensors[one.name].reshape(-1, tensors[one.name].shape[-1])
        part = source[slice(*one.rows), slice(*one.cols)]
        height, width = one.rows[1] - one.rows[0], one.cols[1] - one.cols[0]
        assert not found[one.at[0] : one.at[0] + height, one.at[1] : one.at[1] + width].any()  # none is written twice
        found[one.at[0] : one.at[0] + len(part), one.at[1] : one.at[1] + width] = part
    return found.reshape(shard.shape)


def stages(shape: ModelShape, layout: Layout) -> range:
    return range(len(layout.stage_sizes(shape.num_layers)))


@settings(max_examples=50, deadline=None)
@given(laid_out())
def test_every_shard_is_what_plain_torch_makes_of_the_model(case):
    shape, layout = case
    layout.check(shape)
    padded = padded_vocab_size(shape.vocab_size, 3, layout.tensor)
    tensors = numbered(shape)
    reference = Reference(shape, layout, padded, tensors)
    last = stages(shape, layout)[-1]
    for stage in stages(shape, layout):
        layers = layout.stage_layers(shape.num_layers)[stage]
        for rank in range(layout.tensor):
            shards = dense_shards(shape, layout, padded, stage, rank)
            found = {(one.parameter.layer, one.parameter.name): assembled(one, tensors) for one in shards}
            wanted = {(layer, name): value for layer in layers for name, value in reference.layer(layer, rank)}
            wanted |= {(None, name): value for name, value in reference.first(rank) if stage == 0}
            wanted |= {(None, name): value for name, value in reference.last(rank) if stage == last}
            same(found, wanted)
        for expert in range(layout.expert):
            for rank in range(layout.expert_tensor):
                shards = expert_shards(shape, layout, stage, expert, rank)
                found = {
                    (one.parameter.layer, one.parameter.expert, one.parameter.name): assembled(one, tensors)
                    for one in shards
                }
                same(
                    found,
                    {
                        (layer, number, name): value
                        for layer in layers
                        for number in layout.experts(shape.num_experts, expert)
                        for name, value in reference.expert(layer, number, rank)
                    },
                )


def same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


@settings(max_examples=50, deadline=None)
@given(laid_out())
def test_the_shards_tile_each_canonical_tensor(case):
    shape, layout = case
    padded = padded_vocab_size(shape.vocab_size, 1, layout.tensor)
    counts = {name: torch.zeros(size).reshape(-1, size[-1]) for name, size in shape.tensors().items()}
    for stage in stages(shape, layout):
        shards = [one for rank in range(layout.tensor) for one in dense_shards(shape, layout, padded, stage, rank)]
        for expert in range(layout.expert):
            for rank in range(layout.expert_tensor):
                shards += expert_shards(shape, layout, stage, expert, rank)
        for shard in shards:
            copies = layout.tensor if shard.parameter.split is Split.NOTHING else 1
            for one in shard.rectangles():
                counts[one.name][slice(*one.rows), slice(*one.cols)] += 1 / copies
    copied = {"model.embed_tokens.weight": 2.0} if shape.tied and layout.pipeline > 1 else {}
    for name, count in counts.items():
        torch.testing.assert_close(count, torch.full_like(count, copied.get(name, 1.0)))
