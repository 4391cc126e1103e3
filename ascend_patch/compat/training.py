"""``megatron.training``'s ways in, under one signature for all releases that the wheel carries it in."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from megatron.core.enums import ModelType
from megatron.training import arguments, get_args, training
from megatron.training.initialize import initialize_megatron

_DEFAULTS = {"tokenizer_type": "GPT2BPETokenizer"}  # as upstream's pretrain_gpt.py


def pretrain(datasets_provider: Callable, model_provider: Callable, forward_step: Callable, check: Callable) -> None:
    """Initialise Megatron from ``sys.argv`` and train.

    Args:
        datasets_provider, model_provider, forward_step: as upstream's ``pretrain`` takes them.
        check: called with the parsed arguments; raises for those that cannot be honoured.
    """
    common = {
        "model_type": ModelType.encoder_or_decoder,
        "forward_step_func": forward_step,
        "get_embedding_ranks": _embedding_ranks,
    }
    if "cfg_container" not in inspect.signature(training.pretrain).parameters:  # 0.17 parses by itself

        def checked_model_provider(*args, **kwargs):
            check(get_args())
            return model_provider(*args, **kwargs)

        training.pretrain(datasets_provider, checked_model_provider, args_defaults=_DEFAULTS, **common)
        return
    from megatron.training.argument_utils import pretrain_cfg_container_from_args

    args = arguments.parse_and_validate_args(args_defaults=_DEFAULTS)
    check(args)
    training.pretrain(
        pretrain_cfg_container_from_args(args),
        train_valid_test_dataset_provider=datasets_provider,
        model_provider=model_provider,
        **common,
    )


def initialize(extra_args_provider: Callable | None, defaults: Mapping[str, Any]) -> Any:
    """Initialise Megatron from ``sys.argv`` without training; returns its arguments.

    Args:
        extra_args_provider: adds arguments of a script's own to the parser.
        defaults: values of arguments that the command line does not name.
    """
    parsing = {"extra_args_provider": extra_args_provider, "args_defaults": dict(defaults)}
    if "args_defaults" in inspect.signature(initialize_megatron).parameters:  # 0.17 parses by itself
        initialize_megatron(get_embedding_ranks=_embedding_ranks, **parsing)
    else:
        arguments.parse_and_validate_args(**parsing)
        initialize_megatron(get_embedding_ranks=_embedding_ranks)
    return get_args()


def _embedding_ranks(pipeline_ranks: list[int]) -> list[int]:
    """The stages that hold word embeddings: the first, and the last where input and output share theirs."""
    if len(pipeline_ranks) > 1 and not get_args().untie_embeddings_and_output_weights:
        return [pipeline_ranks[0], pipeline_ranks[-1]]
    return [pipeline_ranks[0]]
