"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

A Mixtral's experts are named as in the files of its weights, ``block_sparse_moe.experts.0.w1``. So has transformers 4
them; PEFT converts them where transformers 5 keeps all experts of a layer in one parameter.

Megatron-LM's model has one ``A`` for query, key and value, and one for gate and up projection: PEFT gets it for each of
them. On the way back, where they differ, ``A`` is all of them one below the other, and ``B`` has the blocks that belong
to each: the same function, at twice or three times the rank.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ascend_patch.checkpoint import output, safetensors
from ascend_patch.checkpoint.adapters import Adapters, Pair, adaptable, load_tensor
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.partition import Parameter
from ascend_patch.checkpoint.shape import ModelShape

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_rslora": (False,),
    "use_dora": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
}
"""Setting -> the values with which an adapter is ``alpha / rank * B A`` and nothing else."""


def write(adapters: Adapters, folder: Path, base: str | None = None) -> None:
    """Write adapters for ``peft.PeftModel.from_pretrained``.

    Args:
        base: name or folder of the model, for the config.

    Raises:
        CheckpointError: ``folder`` exists.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    output.check_new(folder)
    tensors = {}
    for parameter, (first, second) in adapters.pairs.items():
        for name, rows in _rows(parameter).items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = first.clone()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = second[rows].contiguous()
    modules = sorted({name.split(".")[-3] for name in tensors})
    of_parameters = bool({"w1", "w2", "gate"} & set(modules))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        # PEFT refuses dropout for parameters that are not in a linear module, as those of experts in transformers 5.
        lora_dropout=0.0 if of_parameters else adapters.dropout,
        target_modules=modules,
        inference_mode=True,
    )
    unfinished = output.unfinished(folder)
    output.make(unfinished)
    config.save_pretrained(str(unfinished))
    save_file(tensors, unfinished / WEIGHTS, {"format": "pt"})
    output.publish(folder)


def read(folder: Path, shape: ModelShape) -> Adapters:
    """The adapters in a folder of PEFT's, as a model of ``shape`` has them.

    Raises:
        CheckpointError: a file is missing or damaged, the adapters are more than ``alpha / rank * B A``, or a tensor is
            not of the model.
    """
    config = _config(folder)
    tensors = {name: load_tensor(one) for name, one in safetensors.read(folder / WEIGHTS).items()}
    rank, alpha = int(config["r"]), config["lora_alpha"]
    found: dict[Parameter, Pair] = {}
    for parameter in adaptable(shape):
        parts = {name: _take(tensors, name) for name in _rows(parameter)}
        if any(part is not None for part in parts.values()):
            found[parameter] = _joined(parameter, parts, rank)
    if tensors:
        raise CheckpointError(
            f"{folder / WEIGHTS} has tensors that are not of this model, or not named as transformers 4 names them: "
            f"{', '.join(sorted(tensors)[:3])}. Is --model the base of these adapters?"
        )
    if not found:
        raise CheckpointError(f"{folder / WEIGHTS} holds no adapters.")
    widest = max(first.shape[0] for first, _ in found.values())
    pairs = {parameter: _widened(pair, widest) for parameter, pair in found.items()}
    alpha = alpha * widest / rank
    return Adapters(shape, int(alpha) if alpha == int(alpha) else alpha, widest, pairs, config.get("lora_dropout", 0.0))


def _rows(parameter: Parameter) -> dict[str, torch.Tensor]:
    """The modules of Hugging Face's model that a parameter consists of -> their rows in it, in order."""
    rows: dict[str, list[torch.Tensor]] = {}
    start = 0
    for run in parameter.runs:
        stop = start + run.rows[1] - run.rows[0]
        rows.setdefault(run.name.removesuffix(".weight"), []).append(torch.arange(start, stop))
        start = stop
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _take(tensors: dict[str, torch.Tensor], name: str) -> Pair | None:
    first = tensors.pop(f"{_PREFIX}{name}.lora_A.weight", None)
    second = tensors.pop(f"{_PREFIX}{name}.lora_B.weight", None)
    if first is None and second is None:
        return None
    if first is None or second is None:
        raise CheckpointError(f"{name} has only one of lora_A and lora_B: the file is not complete.")
    return first, second


def _joined(parameter: Parameter, parts: Mapping[str, Pair | None], rank: int) -> Pair:
    """One pair for all modules of a parameter; a module without an adapter gets zeros in ``B``."""
    rows = _rows(parameter)
    present = {name: pair for name, pair in parts.items() if pair is not None}
    for name, (first, second) in present.items():
        if first.shape != (rank, parameter.cols) or second.shape != (len(rows[name]), rank):
            raise CheckpointError(
                f"{name} has matrices of {tuple(first.shape)} and {tuple(second.shape)}; with rank {rank}, those of "
                f"this model have {(rank, parameter.cols)} and {(len(rows[name]), rank)}. Is --model their base?"
            )
    firsts = [first for first, _ in present.values()]
    shared = all(torch.equal(first, firsts[0]) for first in firsts)
    first = firsts[0] if shared else torch.cat(firsts)
    second = first.new_zeros(parameter.rows, len(first))
    for number, (name, (_, own)) in enumerate(present.items()):
        start = 0 if shared else number * rank
        second[rows[name], start : start + rank] = own
    return first, second


def _widened(pair: Pair, rank: int) -> Pair:
    """A pair of ``rank`` that does the same: new rows of ``A`` repeat others, so that they can learn; ``B`` is zero."""
    first, second = pair
    if len(first) == rank:
        return pair
    repeated = first.repeat(-(-rank // len(first)), 1)[:rank]
    return repeated, torch.nn.functional.pad(second, (0, rank - second.shape[1]))


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read ({error}). Name a folder that PEFT wrote.") from error
    for name, allowed in _PLAIN.items():
        if config.get(name, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{folder / CONFIG} has {name} = {config[name]!r}; only {allowed[0]!r} can be converted. Merge such "
                "adapters with PEFT's merge_and_unload, and convert the whole model."
            )
    return config
