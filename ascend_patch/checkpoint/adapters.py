"""Adapters (LoRA) as they are trained: a pair of matrices for each parameter of Megatron-LM's model.

``y = W x + alpha / rank * B A x``. :func:`read` and :func:`write` do checkpoints of Megatron-LM, in format torch_dist;
`adapters_peft.py` does PEFT's, `adapters_merge.py` adds adapters to the weights of their base. Adapters are small, and
are held in memory.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ascend_patch.checkpoint import arguments, megatron, output, torch_dist
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.keys import Build, global_keys, parse_global_key
from ascend_patch.checkpoint.layout import Layout
from ascend_patch.checkpoint.partition import Parameter, expert_parameters, layer_parameters
from ascend_patch.checkpoint.shape import ModelShape
from ascend_patch.checkpoint.stored import StoredTensor

type Pair = tuple[torch.Tensor, torch.Tensor]
"""``A [rank, in]`` and ``B [out, rank]``."""


@dataclass(frozen=True)
class Adapters:
    """Adapters of a model."""

    shape: ModelShape
    alpha: float
    rank: int
    pairs: Mapping[Parameter, Pair]
    """In the order of the model; a parameter without an adapter is not in it."""
    dropout: float = 0.0

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def targets(self) -> list[str]:
        """What ``--lora-target-modules`` named."""
        return list(dict.fromkeys(target(parameter) for parameter in self.pairs))


def adaptable(shape: ModelShape) -> Iterator[Parameter]:
    """The parameters that can have adapters: all matrices of the layers."""
    for layer in range(shape.num_layers):
        yield from (parameter for parameter in layer_parameters(shape, layer) if not parameter.vector)
        for expert in range(shape.num_experts):
            yield from expert_parameters(shape, layer, expert)


def target(parameter: Parameter) -> str:
    """The name of a parameter's module: linear_qkv."""
    return parameter.name.split(".")[-2]


def read(folder: Path, step: int | None = None) -> Adapters:
    """The adapters in a checkpoint of Megatron-LM.

    Args:
        folder: what was given to ``--save``, or the folder of one iteration in it.
        step: the iteration; without it the one that upstream would load.

    Raises:
        CheckpointError: there are none, they are of format torch, or some are missing.
    """
    iteration = megatron.find(folder, step)
    if not (iteration / torch_dist.METADATA).exists():
        raise CheckpointError(
            f"{iteration} holds adapters of format torch, if any; only those of format torch_dist can be read. Train "
            "with --ckpt-format torch_dist, upstream's default."
        )
    stored = torch_dist.DistCheckpoint(iteration)
    args = stored.common().get("args")
    if not isinstance(args, argparse.Namespace) or not getattr(args, "lora_target_modules", None):
        raise CheckpointError(f"{iteration} holds no adapters: it was not trained with --lora-target-modules.")
    shape = arguments.read(args, f"args of {iteration}").shape
    wanted = [parameter for parameter in adaptable(shape) if target(parameter) in args.lora_target_modules]
    whole = {key: _whole(stored, key) for key in dict.fromkeys(key for one in wanted for key in _keys(one))}
    pairs = {one: (whole[_keys(one)[0]][_index(one)], whole[_keys(one)[1]][_index(one)]) for one in wanted}
    return Adapters(shape, args.lora_alpha, args.lora_r, pairs, args.lora_dropout)


def write(adapters: Adapters, folder: Path) -> None:
    """Write adapters as a release of Megatron-LM, without an iteration. It loads in any layout.

    Raises:
        CheckpointError: ``folder`` exists, or only some layers have adapters of a kind.
    """
    output.check_new(folder)
    groups: dict[str, list[tuple[Parameter, torch.Tensor]]] = {}
    for parameter, pair in adapters.pairs.items():
        for key, matrix in zip(_keys(parameter), pair, strict=True):
            groups.setdefault(key, []).append((parameter, matrix))
    stacks = {key: _stack(key, group, adapters.shape) for key, group in groups.items()}
    dtype = next(iter(stacks.values())).dtype
    args = arguments.write(adapters.shape, Layout(), adapters.shape.vocab_size, dtype, Build(), "torch_dist")
    args.lora_r, args.lora_alpha, args.lora_dropout = adapters.rank, adapters.alpha, adapters.dropout
    args.lora_target_modules, args.lora_load = adapters.targets, None
    args.lora_base = None  # not known: any base of these sizes is taken
    common = {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
    unfinished = output.unfinished(folder)
    (unfinished / megatron.RELEASE).mkdir(parents=True)
    shards = [
        torch_dist.Shard(key, tuple(stack.shape), (0,) * stack.dim(), tuple(stack.shape), stack.dtype)
        for key, stack in stacks.items()
    ]
    (holes,) = torch_dist.create(unfinished / megatron.RELEASE, [shards], objects={}, common=common)
    for hole, stack in zip(holes, stacks.values(), strict=True):
        with hole.file.open("r+b") as stream:
            stream.seek(hole.offset)
            stream.write(stack.contiguous().view(torch.uint8).numpy().tobytes())
    megatron.finish(unfinished)
    output.publish(folder)


def load_tensor(stored: StoredTensor) -> torch.Tensor:
    """A stored tensor, in memory."""
    with stored.file.open("rb") as stream:
        stream.seek(stored.offset)
        data = bytearray(stream.read(stored.nbytes))
    if len(data) < stored.nbytes:
        raise CheckpointError(f"{stored.file} is too short: is it truncated?")
    return torch.frombuffer(data, dtype=stored.dtype).view(stored.shape)


def _keys(parameter: Parameter) -> tuple[str, str]:
    """Where format torch_dist keeps a parameter's ``A`` and ``B``: those of all layers and experts in one tensor."""
    stem = global_keys(parameter)[0].removesuffix("weight")
    return f"{stem}lora.A", f"{stem}lora.B"


def _index(parameter: Parameter) -> tuple[int, ...]:
    return tuple(number for number in (parameter.layer, parameter.expert) if number is not None)


def _whole(stored: torch_dist.DistCheckpoint, key: str) -> torch.Tensor:
    if key not in stored.tensors:
        raise CheckpointError(f"{key} is missing: the checkpoint is not what its arguments say.")
    found = stored.tensors[key]
    whole = torch.empty(found.shape, dtype=found.dtype)
    for chunk in stored.chunks(key):
        spans = zip(chunk.offsets, chunk.tensor.shape, strict=True)
        whole[tuple(slice(start, start + size) for start, size in spans)] = load_tensor(chunk.tensor)
    return whole


def _stack(key: str, group: list[tuple[Parameter, torch.Tensor]], shape: ModelShape) -> torch.Tensor:
    axes = parse_global_key(key).axes(shape)
    stack = torch.stack([matrix for _, matrix in group])
    if stack.shape[0] != torch.Size(axes).numel():
        raise CheckpointError(
            f"{stack.shape[0]} of {torch.Size(axes).numel()} layers or experts have an adapter of "
            f"{target(group[0][0])}; Megatron-LM's models have one in all of them, or in none."
        )
    return stack.view(*axes, *stack.shape[1:])
