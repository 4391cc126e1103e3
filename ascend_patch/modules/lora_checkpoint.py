"""Checkpoints of a model with adapters: the base is read from one, the adapters are written to and read from others.

The model shows one of its two parts to upstream's functions that save and load: the adapters, except while the base is
read. The optimizer has the adapters alone, so that its state fits.

Adapters mean nothing without their base. A checkpoint of adapters carries a checksum of it, in the arguments that
upstream saves, which is the same in every layout: see :func:`checksum`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ascend_patch.engine.errors import AscendPatchError

_BASE = "lora_base"
"""The argument in which the checksum is saved."""
_SHOWN = 5


_Model: Any = torch.nn.Module
"""Whichever class of model comes after :class:`PartialCheckpoints`, for mypy."""


class PartialCheckpoints(_Model):
    """Put before the class of a model, so that its checkpoints are of one of its two parts."""

    is_base_shown = False

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict:
        return self._shown(super().sharded_state_dict(*args, **kwargs))

    def state_dict_for_save_checkpoint(self, *args: Any, **kwargs: Any) -> dict:
        return self._shown(super().state_dict_for_save_checkpoint(*args, **kwargs))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load one part; all of it must be there, and nothing else.

        Raises:
            AscendPatchError: it is not. Also where ``strict`` is False: upstream tries that when it failed with True.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in self._shown(dict.fromkeys(result.missing_keys)) if _is_weight(name)]
        more = [name for name in result.unexpected_keys if _is_weight(name)]
        if missing or more:
            both = {"missing": missing, "left over": more}
            found = [f"{what}: {', '.join(names[:_SHOWN])}" for what, names in both.items() if names]
            raise AscendPatchError(
                f"The checkpoint is not of the {'base' if self.is_base_shown else 'adapters'} of this model "
                f"({'; '.join(found)}). Give the flags of the model that it was written by, or another checkpoint."
            )
        return result

    def _shown(self, state: dict) -> dict:
        return {name: value for name, value in state.items() if (".lora." in name) != self.is_base_shown}


def show_adapters(model: torch.nn.Module) -> None:
    """Give ``model`` the class of models whose checkpoints are of their adapters."""
    kind = type(model)
    model.__class__ = type(f"Adapted{kind.__name__}", (PartialCheckpoints, kind), {})


def load(
    original: Callable, args: Any, ddp_model: list, optimizer: Any, scheduler: Any, *rest: Any, **kwargs: Any
) -> tuple:
    """``load_checkpoint`` of a model with adapters.

    The base is in ``--pretrained-checkpoint``, and ``--load`` names adapters, to go on with their training if there are
    any yet; without the former, the base is in ``--load``. ``--lora-load`` names adapters to start from.

    Args:
        original: upstream's function, and ``rest`` and ``kwargs`` what it is to get.

    Returns:
        The iteration and the number of floating point operations so far.

    Raises:
        AscendPatchError: there is no base, or the adapters are of another one or of another kind.
    """
    from megatron.training.checkpointing import checkpoint_exists

    base = "pretrained_checkpoint" if args.pretrained_checkpoint else "load"
    if not checkpoint_exists(getattr(args, base)):
        raise AscendPatchError(
            f"Adapters need the weights of a base, and --{base.replace('_', '-')} {getattr(args, base)} holds no "
            "checkpoint. Name that of the base with --pretrained-checkpoint; --load and --save are for the adapters."
        )
    if _is_of_adapters(_saved_arguments(getattr(args, base), args)):
        raise AscendPatchError(
            f"--{base.replace('_', '-')} {getattr(args, base)} holds adapters, not their base. Name the checkpoint of "
            "the base with --pretrained-checkpoint, and that of adapters with --load or --lora-load."
        )
    with _base_of(ddp_model), _weights_only(args, base):
        original(ddp_model, None, None, base, *rest, **kwargs)
    setattr(args, _BASE, checksum(ddp_model))
    if base != "load" and checkpoint_exists(args.load):
        _check(args.load, args)
        return original(ddp_model, optimizer, scheduler, "load", *rest, **kwargs)
    if args.lora_load:
        _check(args.lora_load, args)
        with _weights_only(args, "lora_load"):
            original(ddp_model, optimizer, None, "lora_load", *rest, **kwargs)
    return 0, 0


@torch.no_grad()
def checksum(ddp_model: list) -> str:
    """Of the base's layers, in all ranks together: the same in every layout, and in bfloat16 and float32.

    The sum of the numbers' bits in bfloat16, as integers, which does not depend on how they are dealt out. Embedding
    and output layer do not count: how many rows of padding they have depends on the layout.
    """
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model

    total = torch.zeros((), dtype=torch.int64, device=torch.cuda.current_device())
    first_of_dense = parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    first_of_experts = parallel_state.get_expert_data_parallel_rank() == 0
    first_of_tensor = parallel_state.get_tensor_model_parallel_rank() == 0
    for chunk in unwrap_model(ddp_model):
        for name, parameter in chunk.decoder.layers.named_parameters():
            if ".experts." in name:
                counts = first_of_experts
            else:
                counts = first_of_dense and (parameter.tensor_model_parallel or first_of_tensor)
            if counts and not parameter.requires_grad:
                total += parameter.to(torch.bfloat16).view(torch.int16).sum(dtype=torch.int64)
    torch.distributed.all_reduce(total)
    return f"{int(total) % 2**64:016x}"


def _saved_arguments(folder: str, args: Any) -> Any:
    """The arguments in the checkpoint in ``folder``."""
    from megatron.training import checkpointing

    try:
        with _weights_only(args, None):
            state, *_ = checkpointing._load_base_checkpoint(folder, args, rank0=True)
        return state["args"]
    except Exception as error:
        raise AscendPatchError(
            f"The checkpoint in {folder} could not be read: {type(error).__name__}: {error}. Is it complete, and of "
            "the format that --ckpt-format names?"
        ) from error


def _is_of_adapters(saved: Any) -> bool:
    return bool(getattr(saved, "lora_target_modules", None))


def _check(folder: str, args: Any) -> None:
    """Raise unless ``folder`` holds adapters of this run's base and kind."""
    saved = _saved_arguments(folder, args)
    if not _is_of_adapters(saved):
        raise AscendPatchError(
            f"{folder} holds a whole model, not adapters. With --lora-target-modules, --load and --lora-load name "
            "checkpoints of adapters; the weights of the base belong to --pretrained-checkpoint."
        )
    wanted = _settings(args)
    for flag, value in _settings(saved).items():
        if value != wanted[flag]:
            raise AscendPatchError(
                f"The adapters in {folder} were trained with {flag} {value}, and this run has {flag} {wanted[flag]}; "
                f"its base is {args.pretrained_checkpoint or args.load}. Give the flags that they were trained with, "
                "or another folder."
            )
    # Adapters that were imported do not know.
    if getattr(saved, _BASE, None) not in (None, getattr(args, _BASE)):
        raise AscendPatchError(
            f"The adapters in {folder} are of another base: the checksum of its weights is "
            f"{getattr(saved, _BASE, None)}, and that of {args.pretrained_checkpoint or args.load} is "
            f"{getattr(args, _BASE)}. Name the base that they were trained on with --pretrained-checkpoint."
        )


def _settings(args: Any) -> dict[str, Any]:
    """Flags that adapters and the run that loads them must have in common, and their values."""
    heads = args.num_attention_heads
    return {
        "--num-layers": args.num_layers,
        "--hidden-size": args.hidden_size,
        "--ffn-hidden-size": getattr(args, "moe_ffn_hidden_size", None) or args.ffn_hidden_size,
        "--num-attention-heads": heads,
        "--num-query-groups": args.num_query_groups if args.group_query_attention else heads,
        "--kv-channels": args.kv_channels,
        "--num-experts": args.num_experts or 0,
        "--lora-r": args.lora_r,
        "--lora-alpha": args.lora_alpha,
        "--lora-target-modules": " ".join(sorted(args.lora_target_modules)),
    }


def _is_weight(name: str) -> bool:
    return not name.rpartition(".")[2].startswith("_extra_state")


@contextlib.contextmanager
def _base_of(ddp_model: list) -> Iterator[None]:
    from megatron.core.utils import unwrap_model

    chunks = unwrap_model(ddp_model)
    for chunk in chunks:
        chunk.is_base_shown = True
    try:
        yield
    finally:
        for chunk in chunks:
            del chunk.is_base_shown


@contextlib.contextmanager
def _weights_only(args: Any, load_arg: str | None) -> Iterator[None]:
    """Arguments with which upstream loads the newest weights, and nothing else."""
    changes = {"finetune": True, "no_load_optim": True, "no_load_rng": True, "non_persistent_ckpt_type": None}
    if load_arg != "load":
        changes["ckpt_step"] = None  # is of --load
    before = {name: getattr(args, name, None) for name in changes}
    vars(args).update(changes)
    try:
        yield
    finally:
        vars(args).update(before)
