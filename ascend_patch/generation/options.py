"""The command-line arguments that the scripts which generate share, beside those of Megatron-LM."""

import argparse
from pathlib import Path
from typing import Any

from ascend_patch.data.templates import TEMPLATES
from ascend_patch.generation.base_engine import BaseEngine
from ascend_patch.generation.beam_search import BeamOptions
from ascend_patch.generation.engines import check_beams, create_engine
from ascend_patch.generation.model import load_model, load_tokenizer
from ascend_patch.generation.sampling import SamplingOptions

_PLAIN = SamplingOptions()
_ONE = BeamOptions()


def add_sampling_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """How tokens are chosen; :func:`sampling_options` reads it. ``--seed`` is Megatron-LM's."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-new-tokens", type=int, default=_PLAIN.max_new_tokens)
    group.add_argument("--temperature", type=float, default=_PLAIN.temperature, help="0: the most probable token")
    group.add_argument("--top-k", type=int, default=_PLAIN.top_k, help="0: all tokens")
    group.add_argument("--top-p", type=float, default=_PLAIN.top_p, help="1: all tokens")
    group.add_argument("--repetition-penalty", type=float, default=_PLAIN.repetition_penalty, help="1: none")
    group.add_argument("--stop", action="append", metavar="TEXT", help="ends a completion; may be given several times")
    return parser


def add_beam_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """How completions are searched for; :func:`build_engine` reads it. The names are transformers'."""
    group = parser.add_argument_group("beam search")
    group.add_argument("--num-beams", type=int, default=_ONE.num_beams, help="1: no beam search")
    group.add_argument("--length-penalty", type=float, default=_ONE.length_penalty, help="above 0 favours long ones")
    group.add_argument("--early-stopping", action="store_true", help="end with as many complete ones as beams")
    return parser


def add_engine_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What the engine needs to know."""
    group = parser.add_argument_group("engine")
    group.add_argument("--max-batch-size", type=int, default=8, help="requests that run at once; others wait")
    group.add_argument(
        "--converted-dir", type=Path, help="where the converted weights of a Hugging Face model are kept"
    )
    return parser


def add_template_argument(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """How a conversation becomes a prompt; :func:`ascend_patch.generation.model.load_template` reads it."""
    parser.add_argument(
        "--prompt-template",
        choices=tuple(TEMPLATES),
        default="mistral",
        help="mistral: that of Mixtral Instruct v0.1; tokenizer: its own chat_template (default: %(default)s)",
    )
    return parser


def sampling_options(args: Any) -> SamplingOptions:
    """What :func:`add_sampling_arguments` and ``--seed`` have read."""
    return SamplingOptions(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(args.stop or ()),
        seed=args.seed,
    )


def build_engine(args: Any, prefix_caching: bool = True) -> BaseEngine:
    """The engine that the arguments ask for. A prompt and its completion have ``--seq-length`` tokens at most.

    Args:
        prefix_caching: prompts begin as others did, such as the turns of a conversation.
    """
    beams = BeamOptions()
    if "num_beams" in args:
        beams = BeamOptions(args.num_beams, args.length_penalty, args.early_stopping)
    if beams.num_beams > 1:
        # Before the model, which takes its time.
        beams.check(sampling_options(args))
        check_beams(beams)
    return create_engine(
        load_model(args, args.converted_dir),
        load_tokenizer(args),
        max_sequence_length=args.seq_length,
        max_batch_size=args.max_batch_size,
        prefix_caching=prefix_caching,
        beams=beams,
    )
