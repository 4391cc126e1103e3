"""The engine that this release of upstream can serve with. Each imports what other releases do not have."""

from typing import Any

import torch

from ascend_patch.compat.upstream import has_dynamic_engine, locate
from ascend_patch.generation.base_engine import BaseEngine
from ascend_patch.generation.beam_search import BeamOptions
from ascend_patch.generation.errors import GenerationError


def check_beams(beams: BeamOptions) -> None:
    """Raise :class:`GenerationError` where ``beams`` are asked for that no engine of this release has."""
    version = locate().version
    if beams.num_beams > 1 and not has_dynamic_engine(version):
        raise GenerationError(
            f"num_beams is {beams.num_beams}, and Megatron-LM {version} generates by its static engine, which searches "
            "with no beams. Leave --num-beams at 1, or use a release from 0.17.1 on."
        )


def create_engine(
    model: torch.nn.Module,
    tokenizer: Any,
    *,
    max_sequence_length: int,
    max_batch_size: int = 8,
    prefix_caching: bool = True,
    beams: BeamOptions | None = None,
) -> BaseEngine:
    """The dynamic engine, or the static one, which has no use for the other arguments.

    Args:
        model, tokenizer, max_sequence_length, max_batch_size, prefix_caching: see
            :class:`ascend_patch.generation.engine.Engine`.
        beams: None, or one beam: no search.

    Raises:
        GenerationError: as the engine, or as :func:`check_beams`.
    """
    beams = beams or BeamOptions()
    check_beams(beams)
    if not has_dynamic_engine(locate().version):
        from ascend_patch.generation.static_engine import StaticEngine

        return StaticEngine(model, tokenizer, max_sequence_length=max_sequence_length)
    sizes: dict[str, Any] = {"max_sequence_length": max_sequence_length, "max_batch_size": max_batch_size}
    if beams.num_beams > 1:
        from ascend_patch.generation.beam_engine import BeamEngine

        return BeamEngine(model, tokenizer, beams, **sizes)
    from ascend_patch.generation.engine import Engine

    return Engine(model, tokenizer, prefix_caching=prefix_caching, **sizes)
