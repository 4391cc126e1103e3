"""LoRA fine-tuning: ``--lora-target-modules``, and ``--lora-r``, ``--lora-alpha``, ``--lora-dropout``, ``--lora-load``.

The flags are named as MindSpeed-LLM names them; upstream has none. Where they are absent nothing is changed.
"""

import argparse
from collections.abc import Callable
from functools import wraps
from typing import Any

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Patch
from ascend_patch.features.instruction import training_arguments

TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "router")
DEFAULTS = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0}


def add_megatron_arguments(original: Callable) -> Callable:
    """``add_megatron_arguments`` with the flags of adapters."""

    @wraps(original)
    def add(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser = original(parser)
        group = parser.add_argument_group("ascend_patch: LoRA")
        group.add_argument(
            "--lora-target-modules", nargs="+", choices=TARGETS, help="train adapters of these layers, and nothing else"
        )
        group.add_argument("--lora-r", type=int, help=f"rank of the adapters; default: {DEFAULTS['lora_r']}")
        group.add_argument(
            "--lora-alpha", type=int, help=f"adapters count alpha / r times; default: {DEFAULTS['lora_alpha']}"
        )
        group.add_argument("--lora-dropout", type=float, help="of what goes into the adapters; default: 0")
        group.add_argument("--lora-load", metavar="DIR", help="checkpoint of adapters to start from")
        return parser

    return add


def validate_args(original: Callable) -> Callable:
    """``validate_args`` that checks the flags of adapters, and fills in what was not given."""

    @wraps(original)
    def validate(args: Any, *rest: Any, **kwargs: Any) -> Any:
        check(args)
        return original(args, *rest, **kwargs)

    return validate


def check(args: Any) -> None:
    """Fill in the defaults, if there are to be adapters.

    Raises:
        AscendPatchError: the flags contradict each other, or others that were given.
    """
    if not getattr(args, "lora_target_modules", None):
        given = [name for name in (*DEFAULTS, "lora_load") if getattr(args, name, None) is not None]
        if given:
            raise AscendPatchError(
                f"--{given[0].replace('_', '-')} was given without --lora-target-modules, which says what gets "
                f"adapters: any of {', '.join(TARGETS)}. Add it, or leave the other out."
            )
        return
    for name, default in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if args.lora_r < 1 or args.lora_alpha < 1 or not 0 <= args.lora_dropout < 1:
        raise AscendPatchError(
            f"--lora-r {args.lora_r} --lora-alpha {args.lora_alpha} --lora-dropout {args.lora_dropout}: the first two "
            "must be 1 or more, and the dropout 0 or more and less than 1. Correct them."
        )
    if not (args.pretrained_checkpoint or args.load):
        raise AscendPatchError(
            "--lora-target-modules was given, but no weights to adapt. Name the checkpoint of the base with "
            "--pretrained-checkpoint; tools/checkpoint/util.py makes one of Hugging Face's model."
        )
    if "router" in args.lora_target_modules and not args.num_experts:
        raise AscendPatchError(
            "--lora-target-modules names router, but without --num-experts there is none. Leave router out."
        )
    if getattr(args, "overlap_dispatch_backward_with_experts_wgrad", False) and {"linear_fc1", "linear_fc2"} & {
        *args.lora_target_modules
    }:
        raise AscendPatchError(
            "--overlap-dispatch-backward-with-experts-wgrad was given, and --lora-target-modules names layers of the "
            "experts: tokens are sent within these layers, and an adapter would not get them. Leave the first out."
        )
    pipeline = args.pipeline_model_parallel_size
    refused = {
        f"--ckpt-format {args.ckpt_format}": args.ckpt_format not in ("torch", "torch_dist"),
        "--use-torch-fsdp2": getattr(args, "use_torch_fsdp2", False),
        "--use-megatron-fsdp": getattr(args, "use_megatron_fsdp", False),
        "--moe-use-upcycling": getattr(args, "moe_use_upcycling", False),
        "--init-model-with-meta-device": getattr(args, "init_model_with_meta_device", False),
        # Upstream adds up the gradients of the two copies, of which there are none.
        f"--pipeline-model-parallel-size {pipeline} without --untie-embeddings-and-output-weights": pipeline > 1
        and not args.untie_embeddings_and_output_weights,
        # The other sizes have adapters that some tensor parallel ranks share.
        f"--expert-tensor-parallel-size {args.expert_tensor_parallel_size}": args.expert_tensor_parallel_size
        not in (None, 1, args.tensor_model_parallel_size),
    }
    if found := [flag for flag, is_given in refused.items() if is_given]:
        raise AscendPatchError(
            f"{found[0]} was given with --lora-target-modules, but adapters need --ckpt-format torch or torch_dist, "
            "upstream's DistributedDataParallel, a model that is not upcycled, an output layer of its own in a "
            "pipeline, and experts that are split between all tensor parallel ranks or between none. Correct it."
        )


def initialize_model(original: Callable) -> Callable:
    """``GPTModel.__init__`` that freezes the model and gives it adapters, where they are asked for."""

    @wraps(original)
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        flags = training_arguments()
        if not getattr(flags, "lora_target_modules", None):
            return
        from ascend_patch.modules.adapted import attach
        from ascend_patch.modules.lora import Lora
        from ascend_patch.modules.lora_checkpoint import show_adapters

        targets = tuple(dict.fromkeys(flags.lora_target_modules))
        attach(self, Lora(flags.lora_r, flags.lora_alpha, flags.lora_dropout, targets, flags.seed))
        show_adapters(self)

    return initialize


def load_checkpoint(original: Callable) -> Callable:
    """``load_checkpoint`` that reads the base from one checkpoint and its adapters from another."""

    @wraps(original)
    def load(ddp_model, optimizer, opt_param_scheduler, load_arg="load", *rest, **kwargs):
        flags = training_arguments()
        if load_arg != "load" or not getattr(flags, "lora_target_modules", None):
            return original(ddp_model, optimizer, opt_param_scheduler, load_arg, *rest, **kwargs)
        from ascend_patch.modules import lora_checkpoint

        return lora_checkpoint.load(original, flags, ddp_model, optimizer, opt_param_scheduler, *rest, **kwargs)

    return load


_HERE = "ascend_patch.features.lora"

PATCHES = (
    Patch(
        id="lora.flags",
        target="megatron.training.arguments:add_megatron_arguments",
        impl=f"{_HERE}:add_megatron_arguments",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason="Upstream has no word for fine-tuning with low-rank adapters.",
        remove_when="upstream's training loop trains adapters by flags of its own.",
    ),
    Patch(
        id="lora.flags",
        target="megatron.training.arguments:validate_args",
        impl=f"{_HERE}:validate_args",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason="Flags of adapters that cannot be honoured are refused by name.",
        remove_when="upstream's training loop trains adapters by flags of its own.",
    ),
    Patch(
        id="lora.model",
        target="megatron.core.models.gpt.gpt_model:GPTModel.__init__",
        impl=f"{_HERE}:initialize_model",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason="Whatever script builds the model, adapters must be in it before the optimizer's buffers are made.",
        remove_when="upstream's training loop trains adapters by flags of its own.",
        consumers=(
            "megatron.core.tensor_parallel.layers:ColumnParallelLinear.forward",
            "megatron.core.tensor_parallel.layers:RowParallelLinear.forward",
            "megatron.core.transformer.moe.router:Router.gating",
        ),
    ),
    Patch(
        id="lora.checkpoint",
        target="megatron.training.checkpointing:load_checkpoint",
        impl=f"{_HERE}:load_checkpoint",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason="Upstream loads all of a model from one checkpoint; adapters are saved without their base.",
        remove_when="upstream's training loop trains adapters by flags of its own.",
        consumers=(
            "megatron.training.checkpointing:_load_base_checkpoint",
            "megatron.training.checkpointing:generate_state_dict",
        ),
    ),
)
