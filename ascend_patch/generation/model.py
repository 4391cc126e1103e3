"""A trained model, ready to generate: Megatron-LM's arguments, its checkpoint, this rank's part."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.utils import unwrap_model
from megatron.training import checkpointing, training

from ascend_patch.checkpoint import manifest, megatron, side_files, torch_dist
from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.keys import Build
from ascend_patch.checkpoint.layout import Layout
from ascend_patch.compat.training import initialize as initialize_megatron
from ascend_patch.data.templates import Template, create_template
from ascend_patch.data.tokenize import HuggingFaceTokenizer
from ascend_patch.generation import ranks
from ascend_patch.generation.errors import GenerationError
from ascend_patch.model_provider import model_provider

_DEFAULTS = {
    "tokenizer_type": "HuggingFaceTokenizer",
    "micro_batch_size": 1,
    "exit_on_missing_checkpoint": True,
    "no_load_optim": True,
    "no_load_rng": True,
}


def initialize(extra_args_provider: Callable | None = None) -> Any:
    """Parse ``sys.argv`` as Megatron-LM does, and set up its process groups; returns the arguments.

    Args:
        extra_args_provider: adds a script's own arguments to the parser, as upstream's scripts do.
    """
    return initialize_megatron(extra_args_provider, _DEFAULTS)


def load_tokenizer(args: Any) -> Any:
    """The tokenizer of transformers in ``--tokenizer-model``; no hub is asked and none of its code is run.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    return _tokenizer(args.tokenizer_model).hf


def load_template(args: Any) -> Template:
    """The template ``--prompt-template`` names, which makes a prompt of a conversation.

    Raises:
        DataError: the tokenizer lacks what it needs.
    """
    return create_template(args.prompt_template, _tokenizer(args.tokenizer_model))


@cache
def _tokenizer(folder: str) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(Path(folder))


def weights_arguments(args: Any) -> list[str]:
    """The arguments that name the weights: those of the model, or of its base and then of its adapters.

    Raises:
        GenerationError: one of them is missing.
    """
    adapted = bool(getattr(args, "lora_target_modules", None))
    names = ["pretrained_checkpoint" if adapted and args.pretrained_checkpoint else "load"]
    if adapted:
        names.append("load" if args.load and names != ["load"] else "lora_load")
    for name, purpose in zip(
        names, ("names the checkpoint whose weights generate", "names the adapters"), strict=False
    ):
        if getattr(args, name) is None:
            raise GenerationError(f"--{name.replace('_', '-')} {purpose}; it is missing.")
    return names


def model_name(args: Any) -> str:
    """The name of the folder with the weights, or with the adapters if there are any."""
    return Path(getattr(args, weights_arguments(args)[-1])).resolve().name


def load_model(args: Any, converted: Path | None = None) -> torch.nn.Module:
    """This rank's part of the model with the weights of ``--load``, in eval mode.

    ``--load`` names a checkpoint of Megatron-LM, or a model in Hugging Face's format, which is converted first, once.
    With ``--lora-target-modules`` it names the base of adapters, which are in ``--lora-load``; or, as in training,
    ``--pretrained-checkpoint`` names the base and ``--load`` the adapters.

    Args:
        converted: where the converted weights are kept; by default ``model_weights`` and the model's name.

    Raises:
        GenerationError: a checkpoint is not named, not there, or has another layout, or the model is cut into virtual
            stages.
        CheckpointError: it cannot be converted.
        AscendPatchError: the adapters are of another base or of another kind.
    """
    if args.virtual_pipeline_model_parallel_size is not None:
        raise GenerationError("Virtual pipeline stages are for training; leave their flags out to generate.")
    base, *adapters = weights_arguments(args)
    for name in adapters:
        _on_first_rank(partial(_check_adapters, name, args))
    found = _on_first_rank(lambda: megatron_checkpoint(Path(getattr(args, base)), converted, args))
    setattr(args, base, str(found))
    model = training.get_model(model_provider, wrap_with_ddp=False)
    checkpointing.load_checkpoint(model, None, None)
    (module,) = unwrap_model(model)
    return module.eval()


def megatron_checkpoint(folder: Path, converted: Path | None, args: Any) -> Path:
    """``folder`` if Megatron-LM wrote it in this job's layout, or what it has been converted to.

    Raises:
        GenerationError: it is neither, or has another layout.
        CheckpointError: it cannot be converted.
    """
    if (folder / megatron.TRACKER).is_file():
        _check_layout(folder, args)
        _check_whole(folder, args)
        return folder
    if not (folder / side_files.CONFIG).is_file():
        raise GenerationError(
            f"--load {folder} is neither a checkpoint of Megatron-LM (it has no {megatron.TRACKER}) nor a Hugging Face "
            f"model (no {side_files.CONFIG})."
        )
    target = converted or Path("model_weights") / folder.resolve().name
    build = Build(args.transformer_impl, args.moe_grouped_gemm)
    if not (target / manifest.NAME).is_file():
        # torch_dist loads in every layout.
        return convert(Options(folder, target, make_vocab_size_divisible_by=1, build=build))
    source = manifest.Manifest.read(target).source.get("folder")
    if source != str(folder.resolve()):
        raise GenerationError(
            f"{target} was converted from {source}, not from {folder}. Name another folder for the converted weights "
            "(--converted-dir), or remove this one."
        )
    return target


def _check_adapters(name: str, args: Any) -> None:
    """That the folder which the argument ``name`` names is a checkpoint that loads in this job's layout."""
    folder = Path(getattr(args, name))
    if not (folder / megatron.TRACKER).is_file():
        raise GenerationError(
            f"--{name.replace('_', '-')} {folder} is no checkpoint of adapters (it has no {megatron.TRACKER}). Those "
            "in PEFT's format are imported by tools/checkpoint/adapter.py."
        )
    _check_layout(folder, args)


def _check_layout(folder: Path, args: Any) -> None:
    """Format torch has a folder for each part of the model in its layout; torch_dist loads in every layout."""
    iteration = megatron.find(folder)
    present = {entry.name for entry in iteration.glob("mp_rank_*")}
    job = Layout(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.expert_model_parallel_size,
        args.expert_tensor_parallel_size or 0,
    )
    wanted = {job.folder(rank) for rank in job.ranks()}
    if present and present != wanted:
        raise GenerationError(
            f"{iteration} is in format torch, and was cut for another layout: it has {', '.join(sorted(present))}; "
            f"this job needs {', '.join(sorted(wanted))}. Start it in the checkpoint's layout, or convert that with "
            "tools/checkpoint/util.py --loader mixtral_mg --saver mixtral."
        )


def _check_whole(folder: Path, args: Any) -> None:
    """That what is to be a model is more than adapters."""
    iteration = megatron.find(folder)
    if getattr(args, "lora_target_modules", None) or not (iteration / torch_dist.METADATA).is_file():
        return
    keys = torch_dist.DistCheckpoint(iteration, trust=True).tensors  # upstream reads it without asking, too
    if any(".lora." in key for key in keys):
        raise GenerationError(
            f"--load {folder} holds adapters without their base. Name that with --pretrained-checkpoint, and give the "
            "flags that the adapters were trained with: --lora-target-modules, --lora-r, --lora-alpha."
        )


def _on_first_rank[Result](work: Callable[[], Result]) -> Result:
    """What ``work`` returns on rank 0, on all ranks; what it raises there, everywhere."""
    outcome: Any = None
    if ranks.first():
        try:
            outcome = work()
        except (GenerationError, CheckpointError) as error:
            outcome = error
    outcome = ranks.broadcast(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
