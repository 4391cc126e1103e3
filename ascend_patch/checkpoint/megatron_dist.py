"""Megatron-LM's format `torch_dist`: one tensor of all layers (and of all experts) for each kind of parameter."""

import argparse
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ascend_patch.checkpoint import arguments, torch_dist
from ascend_patch.checkpoint.assembly import Assembly, Faults
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.keys import GlobalKey, Key, global_keys, parse_global_key
from ascend_patch.checkpoint.layout import Layout
from ascend_patch.checkpoint.partition import (
    Block,
    Parameter,
    Shard,
    Split,
    dense_shards,
    expert_parameters,
    expert_shards,
    first_stage,
    last_stage,
    layer_parameters,
)
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.checkpoint.stored import Checkpoint


def open(folder: Path, *, vocab_size: int | None = None, trust: bool = False) -> Checkpoint:
    """The model in the folder of an iteration. See `megatron.open`."""
    stored = torch_dist.DistCheckpoint(folder, trust=trust)
    args = stored.common().get("args")
    if not isinstance(args, argparse.Namespace):
        raise CheckpointError(f"{folder} has no args in its common state: was it written by Megatron-LM?")
    read = arguments.read(args, f"args of {folder}", vocab_size=vocab_size)
    shape = read.shape
    wanted = {Key.of(parameter): parameter for parameter in _parameters(shape, read.padded_vocab)}
    assembly, faults = Assembly(shape), Faults()
    seen: set[Key] = set()
    for key, whole in stored.tensors.items():
        if "optimizer" in key.split("."):
            continue
        parsed = parse_global_key(key)
        axes = parsed.axes(shape)
        parameter = wanted.get(parsed.key((0,) * len(axes)))
        if parameter is None:
            faults.left_over([key])
            continue
        seen.update(parsed.key(index) for index in itertools.product(*map(range, axes)))
        full = (*axes, *parameter.shape(*parameter.whole.size))
        if faults.fits_shape(key, whole.shape, whole.dtype, full):
            for chunk in stored.chunks(key):
                _collect(chunk, parsed, len(axes), wanted, assembly)
    stacked = not any(parse_global_key(key).layer is not None for key in stored.tensors)
    absent = (parameter for key, parameter in wanted.items() if key not in seen)
    faults.missing(dict.fromkeys(_name(parameter, stacked) for parameter in absent))
    faults.check(folder)
    return assembly.checkpoint(folder)


def create(
    folder: Path,
    shape: ModelShape,
    layout: Layout,
    dtype: torch.dtype,
    state: Mapping[str, Any],
    *,
    padded_vocab: int,
) -> Checkpoint:
    """Write the folder of an iteration but for the bytes of its tensors. `state` is its common state."""
    owned = [list(part) for part in _ranks(shape, layout, padded_vocab)]
    ranks = [[piece for shard in part for piece in _stored(shard, shape, dtype)] for part in owned]
    holes = torch_dist.create(folder, ranks, objects=dict.fromkeys(_extra_states(shape)), common=state)
    assembly = Assembly(shape)
    for part, tensors in zip(owned, holes, strict=True):
        left = iter(tensors)
        for shard in part:
            for _ in global_keys(shard.parameter):
                for block in shard.blocks:
                    assembly.add(next(left), shard.parameter.rectangles(block))
    return assembly.checkpoint(folder, dtype)


def _name(parameter: Parameter, stacked: bool) -> str:
    """A parameter's key, with the number of its layer where layers have keys of their own."""
    key = global_keys(parameter)[0]
    return key if stacked else key.replace("decoder.layers.", f"decoder.layers.{parameter.layer}.")


def _collect(
    chunk: torch_dist.Chunk, key: GlobalKey, axes: int, wanted: Mapping[Key, Parameter], assembly: Assembly
) -> None:
    """Enter a chunk: a block of each of some layers (and of some experts), one below the other."""
    spans = [(start, start + size) for start, size in zip(chunk.offsets, chunk.tensor.shape, strict=True)]
    own = spans[axes:]
    block = Block(own[0], own[1]) if len(own) == 2 else Block((0, 1), own[0])
    top = 0
    for index in itertools.product(*(range(*span) for span in spans[:axes])):
        assembly.add(chunk.tensor, wanted[key.key(index)].rectangles(block), top=top)
        top += block.size[0]


def _parameters(shape: ModelShape, padded_vocab: int) -> Iterator[Parameter]:
    """All of the model's; format `torch_dist` keeps tied weights once."""
    yield from first_stage(shape, padded_vocab)
    for layer in range(shape.num_layers):
        yield from layer_parameters(shape, layer)
        for expert in range(shape.num_experts):
            yield from expert_parameters(shape, layer, expert)
    yield from last_stage(shape, padded_vocab, pipeline=1)


def _ranks(shape: ModelShape, layout: Layout, padded_vocab: int) -> Iterator[list[Shard]]:
    """What is in the file of each rank: of what several ranks hold, the first writes it."""
    experts = layout.expert * layout.expert_tensor if shape.num_experts else 0
    for pipeline in range(layout.pipeline):
        stages = [chunk * layout.pipeline + pipeline for chunk in range(layout.virtual)]
        for rank in range(max(layout.tensor, experts)):
            found: list[Shard] = []
            for stage in stages:
                if rank < layout.tensor:
                    dense = dense_shards(shape, layout, padded_vocab, stage, rank)
                    found += (shard for shard in dense if _writes(rank, shard.parameter, shape))
                if rank < experts:
                    found += expert_shards(shape, layout, stage, *divmod(rank, layout.expert_tensor))
            yield found


def _writes(rank: int, parameter: Parameter, shape: ModelShape) -> bool:
    copy = shape.tied and parameter.name == "output_layer.weight"
    return not copy and (rank == 0 or parameter.split is not Split.NOTHING)


def _stored(shard: Shard, shape: ModelShape, dtype: torch.dtype) -> Iterator[torch_dist.Shard]:
    """The chunks of a shard, in the order in which `create` takes their holes."""
    parameter = shard.parameter
    index = tuple(number for number in (parameter.layer, parameter.expert) if number is not None)
    for key in global_keys(parameter):
        whole = (*parse_global_key(key).axes(shape), *parameter.shape(*parameter.whole.size))
        for block in shard.blocks:
            start = (block.cols[0],) if parameter.vector else (block.rows[0], block.cols[0])
            size = (1,) * len(index) + parameter.shape(*block.size)
            yield torch_dist.Shard(key, whole, (*index, *start), size, dtype)


def _extra_states(shape: ModelShape) -> Iterator[str]:
    """Where modules keep a state of their own besides their weights.

    It is empty without FP8. But upstream's loader fails if a state that the model has is not there, and takes no notice
    of one that the model does not have: so these are the states of all builds, TransformerEngine's among them.
    """
    layers, experts = shape.num_layers, shape.num_experts
    modules = ["input_layernorm", "pre_mlp_layernorm"]
    modules += [f"self_attention.{name}" for name in ("core_attention", "linear_proj", "linear_qkv")]
    modules += [] if experts else ["mlp.linear_fc1", "mlp.linear_fc2"]
    yield "decoder.final_layernorm._extra_state/shard_0_1"
    for layer in range(layers):
        yield from (f"decoder.layers.{module}._extra_state/shard_{layer}_{layers}" for module in modules)
        for expert, number in itertools.product(range(experts), (1, 2)):
            place = f"shard_{layer}.{expert}_{layers}.{experts}"
            yield f"decoder.layers.mlp.experts.experts.linear_fc{number}._extra_state/{place}"
