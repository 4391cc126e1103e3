"""Megatron-LM's format `torch`: a folder for each part of the model, mp_rank_TT[_PPP][_EEE], with one file in it."""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ascend_patch.checkpoint import arguments, torch_file
from ascend_patch.checkpoint.arguments import Arguments
from ascend_patch.checkpoint.assembly import Assembly, Faults
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.keys import Build, Key, parse_state_dict_key, state_dict_key
from ascend_patch.checkpoint.layout import Layout, Rank
from ascend_patch.checkpoint.partition import Shard, dense_shards, expert_shards
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.checkpoint.stored import Checkpoint, StoredTensor

FILE = "model_optim_rng.pt"

_GROUPED_MLP = re.compile(r"(.*\.mlp\.experts\.)weight([12])")
"""All experts of a rank in two matrices, each expert's transposed (releases up to 0.16)."""


def open(folder: Path, *, vocab_size: int | None = None, trust: bool = False) -> Checkpoint:
    """The model in the folder of an iteration. See `megatron.open`."""
    present = {file.parent.name: file for file in folder.glob(f"mp_rank_*/{FILE}")}
    if not present:
        raise CheckpointError(f"{folder} has no mp_rank_*/{FILE}: it holds no Megatron-LM checkpoint of format torch.")
    first = min(present)
    read = arguments.read(_args(present[first], trust), f"args of {present[first]}", vocab_size=vocab_size)
    ranks = {read.layout.folder(rank): rank for rank in read.layout.ranks()}
    if present.keys() != ranks.keys():
        absent, more = sorted(ranks.keys() - present.keys()), sorted(present.keys() - ranks.keys())
        raise CheckpointError(
            f"{folder}: by the arguments of {first}, the model has the parts {', '.join(sorted(ranks))}"
            + (f"; {', '.join(absent)} is missing (each with a file {FILE})" if absent else "")
            + (f"; {', '.join(more)} is not one of them" if more else "")
            + "."
        )
    assembly, faults = Assembly(read.shape), Faults()
    for name, rank in ranks.items():
        state = _read(present[name], trust)
        for chunk in range(read.layout.virtual):
            key = _model_key(read.layout, chunk)
            model = state.get(key)
            _collect(
                model if isinstance(model, dict) else {}, f"{name}/{FILE}: {key}", read, rank, chunk, assembly, faults
            )
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
    build: Build,
) -> Checkpoint:
    """Write the folder of an iteration but for the bytes of its tensors. `state` is what each file has besides them."""
    assembly = Assembly(shape)
    for rank in layout.ranks():
        models = {}
        for chunk in range(layout.virtual):
            begin = _begin(shape, layout, rank, chunk)
            models[_model_key(layout, chunk)] = {
                state_dict_key(shard.parameter, build, **begin): shard
                for shard in _shards(shape, layout, padded_vocab, rank, chunk)
            }
        part = folder / layout.folder(rank)
        part.mkdir()
        tensors = {
            key: {name: torch.empty(shard.shape, dtype=dtype, device="meta") for name, shard in shards.items()}
            for key, shards in models.items()
        }
        holes = torch_file.create(part / FILE, {**state, **tensors})
        for key, shards in models.items():
            for name, shard in shards.items():
                assembly.add(holes[key][name], shard.rectangles())
    return assembly.checkpoint(folder, dtype)


def _model_key(layout: Layout, chunk: int) -> str:
    return "model" if layout.virtual == 1 else f"model{chunk}"


def _begin(shape: ModelShape, layout: Layout, rank: Rank, chunk: int) -> dict[str, int]:
    """The first layer and the first expert of a model chunk of a rank."""
    layers = layout.layers(shape.num_layers, rank.pipeline, chunk)
    return {"first_layer": layers.start, "first_expert": layout.experts(shape.num_experts, rank.expert).start}


def _shards(shape: ModelShape, layout: Layout, padded_vocab: int, rank: Rank, chunk: int) -> Iterator[Shard]:
    stage = chunk * layout.pipeline + rank.pipeline
    yield from dense_shards(shape, layout, padded_vocab, stage, rank.tensor)
    yield from expert_shards(shape, layout, stage, rank.expert, rank.expert_tensor)


def _collect(
    model: Mapping[str, Any], where: str, read: Arguments, rank: Rank, chunk: int, assembly: Assembly, faults: Faults
) -> None:
    """Enter what a model chunk of a rank holds."""
    begin = _begin(read.shape, read.layout, rank, chunk)
    local_experts = read.shape.num_experts // read.layout.expert
    shards = _shards(read.shape, read.layout, read.padded_vocab, rank, chunk)
    wanted = {Key.of(shard.parameter): shard for shard in shards}
    seen = set()
    for name, value, transposed in _tensors(model, local_experts):
        key = parse_state_dict_key(name, **begin)
        shard = wanted.get(key)
        if shard is None:
            faults.left_over([f"{where}: {name}"])
            continue
        seen.add(key)
        if faults.fits(f"{where}: {name}", value, shard.shape[::-1] if transposed else shard.shape):
            assembly.add(value, shard.rectangles(), transposed=transposed)
    faults.missing(
        f"{where}: {state_dict_key(shard.parameter, Build(), **begin)}"
        for key, shard in wanted.items()
        if key not in seen
    )


def _tensors(model: Mapping[str, Any], experts: int) -> Iterator[tuple[str, Any, bool]]:
    """Each parameter's name, its tensor, and whether that is transposed."""
    for name, value in model.items():
        grouped = _GROUPED_MLP.fullmatch(name)
        if grouped and experts and isinstance(value, StoredTensor) and len(value.shape) == 2:
            yield from _grouped_mlp(grouped[1], int(grouped[2]), value, experts)
        elif not name.endswith("_extra_state"):
            yield name, value, False


def _grouped_mlp(prefix: str, number: int, value: StoredTensor, experts: int) -> Iterator[tuple[str, Any, bool]]:
    """The experts in weight1, (hidden, experts * 2 ffn) seen as (experts, hidden, 2 ffn), or weight2, the other way."""
    rows, cols = value.shape
    shape = (rows, cols // experts) if number == 1 else (rows // experts, cols)
    for expert in range(experts):
        offset = value.offset + expert * value.nbytes // experts
        tensor = StoredTensor(value.file, offset, shape, value.dtype)
        yield f"{prefix}linear_fc{number}.weight{expert}", tensor, True


def _read(file: Path, trust: bool) -> dict[str, Any]:
    state = torch_file.read(file, trust=trust)
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} holds a {type(state).__name__}, not the state of a Megatron-LM rank.")
    return state


def _args(file: Path, trust: bool) -> argparse.Namespace:
    args = _read(file, trust).get("args")
    if not isinstance(args, argparse.Namespace):
        raise CheckpointError(f"{file} has no args: was it written by Megatron-LM?")
    return args
