"""A trained model, ready to generate: Megatron-LM's arguments, its checkpoint, this rank's part."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.utils import unwrap_model
from megatron.training import checkpointing, training

from ascend_patch.compat.training import initialize as initialize_megatron
from ascend_patch.generation.errors import GenerationError
from ascend_patch.pretrain_gpt import model_provider

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


def build(args: Any) -> torch.nn.Module:
    """This rank's part of the model with the weights of ``--load``, in eval mode.

    Raises:
        GenerationError: there is no ``--load``, or the model is cut into virtual stages.
    """
    if args.virtual_pipeline_model_parallel_size is not None:
        raise GenerationError("Virtual pipeline stages are for training; leave their flags out to generate.")
    if args.load is None:
        raise GenerationError("--load names the checkpoint whose weights generate; it is missing.")
    model = training.get_model(model_provider, wrap_with_ddp=False)
    checkpointing.load_checkpoint(model, None, None)
    (module,) = unwrap_model(model)
    return module.eval()
