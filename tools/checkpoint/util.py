"""Convert Mixtral and Mistral weights: Hugging Face's to Megatron-LM's in any layout, and back.

  Hugging Face -> Megatron-LM
    python tools/checkpoint/util.py --model-type GPT --loader mixtral_hf --saver mixtral \\
        --load-dir model_from_hf/Mixtral-8x7B --save-dir model_weights/Mixtral-8x7B-tp1-pp8-ep2 \\
        --target-tensor-parallel-size 1 --target-pipeline-parallel-size 8 --target-expert-parallel-size 2

  Megatron-LM -> Megatron-LM, in another layout; that of the source is read from it
    python tools/checkpoint/util.py --model-type GPT --loader mixtral_mg --saver mixtral \\
        --load-dir model_weights/Mixtral-8x7B-tp1-pp8-ep2 --save-dir model_weights/Mixtral-8x7B-tp8 \\
        --target-tensor-parallel-size 8

  Megatron-LM -> Hugging Face; into model_from_hf/Mixtral-8x7B/mg2hg if that is the original model
    python tools/checkpoint/util.py --model-type GPT --loader mixtral_mg --saver mixtral \\
        --save-model-type huggingface \\
        --load-dir model_weights/Mixtral-8x7B-tp1-pp8-ep2 --save-dir model_from_hf/Mixtral-8x7B

  Is a result still what was written?
    python tools/checkpoint/util.py --verify --save-dir model_weights/Mixtral-8x7B-tp8

A conversion that was interrupted continues when the same command is run again.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

# torch takes seconds to import: only once the command line is known to be good.
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.commands.options import positive, whole

if TYPE_CHECKING:
    from ascend_patch.checkpoint.convert import Kind, Options

LOADERS: "dict[str, Kind]" = {
    "mixtral_hf": "huggingface",
    "mistral_hf": "huggingface",
    "mixtral_mg": "megatron",
    "mistral_mg": "megatron",
}
SAVERS = ("mixtral", "mistral")
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
MOST_WORKERS = 8  # disks do not get faster with more, and each takes some 50 MB


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 if it failed, 130 if it was interrupted.

    Raises:
        SystemExit: with 2, of a wrong command line.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    check(parser, options)
    progress = Bars()
    started = time.monotonic()
    try:
        # Copies are parallel already; each thread with threads of its own would only make them wait for each other.
        import torch

        torch.set_num_threads(1)
        if options.load_dir is None:
            from ascend_patch.checkpoint.verify import verify

            verify(options.save_dir, options.workers, progress)
            return 0
        from ascend_patch.checkpoint.convert import convert

        folder = convert(to_options(options), progress)
    except CheckpointError as error:
        print(f"util.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"util.py: {where}{error.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nutil.py: interrupted. The same command continues where it stopped.", file=sys.stderr)
        return 130
    progress.say(f"{folder} is ready, after {time.monotonic() - started:.0f} s.")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line; it is that of upstream's and of ModelLink's tool."""
    parser = argparse.ArgumentParser(
        prog="util.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_argument_group("what is converted")
    what.add_argument("--model-type", choices=["GPT"], default="GPT", help="GPT, the only one")
    what.add_argument(
        "--loader", choices=list(LOADERS), help="what --load-dir holds: Hugging Face's (hf) or Megatron-LM's"
    )
    what.add_argument(
        "--saver", choices=SAVERS, default="mixtral", help="family of models; the source says which it is"
    )
    what.add_argument(
        "--save-model-type", choices=["megatron", "huggingface"], default="megatron", help="what to write"
    )
    what.add_argument("--load-dir", type=Path, metavar="DIR", help="the source; with --verify it may be left out")
    what.add_argument("--save-dir", type=Path, metavar="DIR", required=True, help="the result; must not be there yet")
    what.add_argument(
        "--ckpt-step", type=int, metavar="N", help="iteration of a Megatron-LM source; default: the latest"
    )
    what.add_argument(
        "--tokenizer-model", type=Path, metavar="PATH", help="tokenizer to take along; default: the source's"
    )
    what.add_argument(
        "--hf-folder",
        type=Path,
        metavar="DIR",
        help="the original model, for the config.json and the tokenizer of a Megatron-LM source that keeps none",
    )
    what.add_argument(
        "--true-vocab-size",
        type=positive,
        metavar="N",
        help="tokens of a Megatron-LM source, without padding; default: as its config.json says",
    )
    what.add_argument("--num-experts", type=whole, metavar="N", help="refuse a model with another number of experts")
    what.add_argument("--moe-router-topk", type=whole, metavar="N", help="refuse a model with another number")

    target = parser.add_argument_group("layout of a Megatron-LM result")
    sizes = {
        "--target-tensor-parallel-size": "default: 1",
        "--target-pipeline-parallel-size": "default: 1",
        "--target-expert-parallel-size": "default: 1",
        "--target-expert-tensor-parallel-size": "default: the tensor parallel size",
        "--target-num-layers-per-virtual-pipeline-stage": "default: no virtual stages",
        "--target-decoder-first-pipeline-num-layers": "layers of the first stage; default: as the others",
        "--target-decoder-last-pipeline-num-layers": "layers of the last stage; default: as the others",
    }
    for flag, text in sizes.items():
        target.add_argument(flag, type=positive, metavar="N", help=text)
    target.add_argument(
        "--make-vocab-size-divisible-by", type=positive, default=1, metavar="N", help="as in training; default: 1"
    )
    target.add_argument(
        "--extra-vocab-size", type=whole, default=0, metavar="N", help="tokens to add; each begins as the mean of all"
    )
    target.add_argument(
        "--ckpt-format",
        choices=["torch", "torch_dist"],
        default="torch_dist",
        help="torch_dist (default) is loaded in any layout, torch in this one only",
    )
    target.add_argument(
        "--transformer-impl",
        choices=["transformer_engine", "local"],
        default="transformer_engine",
        help="as in training; names of tensors in format torch",
    )
    target.add_argument(
        "--moe-grouped-gemm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="as in training; names of tensors in format torch; default: yes",
    )

    dtype = parser.add_argument_group("dtype of the result; default: the source's").add_mutually_exclusive_group()
    dtype.add_argument("--params-dtype", choices=list(DTYPES))
    for name in DTYPES:
        dtype.add_argument(f"--{name}", dest="params_dtype", action="store_const", const=name)

    how = parser.add_argument_group("how")
    how.add_argument(
        "--workers", type=positive, default=default_workers(), metavar="N", help="threads; default: %(default)s"
    )
    how.add_argument(
        "--verify", action="store_true", help="read the result back and compare it; alone: one that is there"
    )
    how.add_argument(
        "--trust-pickle",
        action="store_true",
        help="run the code in pickles that hold more than weights: only for files that you trust",
    )
    return parser


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Flags that do not go together are errors of the command line."""
    if options.load_dir is None:
        if not options.verify:
            parser.error("--load-dir is missing. Only --verify does without: it reads --save-dir.")
        return
    if options.loader is None:
        parser.error(f"--loader is missing: {', '.join(LOADERS)} say what --load-dir holds.")
    loads = LOADERS[options.loader]
    if loads == options.save_model_type == "huggingface":
        parser.error("from Hugging Face to Hugging Face there is nothing to convert: use another --loader.")
    only = {
        "a Megatron-LM source": (loads == "megatron", ["ckpt_step", "hf_folder", "true_vocab_size"]),
        "a Megatron-LM result": (
            options.save_model_type == "megatron",
            ["extra_vocab_size", *(name for name in vars(options) if name.startswith("target_"))],
        ),
    }
    for what, (fits, names) in only.items():
        given = [name for name in names if getattr(options, name)]
        # The seeds' scripts name sizes of 1 for everything.
        given = [name for name in given if not (name.startswith("target_") and getattr(options, name) == 1)]
        if given and not fits:
            parser.error(f"--{given[0].replace('_', '-')} is only for {what}.")


def to_options(options: argparse.Namespace) -> "Options":
    """What the flags ask for."""
    import torch

    from ascend_patch.checkpoint.convert import Options
    from ascend_patch.checkpoint.keys import Build

    sizes: dict[str, Any] = {
        "tensor": options.target_tensor_parallel_size or 1,
        "pipeline": options.target_pipeline_parallel_size or 1,
        "expert": options.target_expert_parallel_size or 1,
        "expert_tensor": options.target_expert_tensor_parallel_size or 0,
        "layers_per_virtual_stage": options.target_num_layers_per_virtual_pipeline_stage,
        "first_layers": options.target_decoder_first_pipeline_num_layers,
        "last_layers": options.target_decoder_last_pipeline_num_layers,
    }
    same = (
        "load_dir save_dir hf_folder true_vocab_size num_experts make_vocab_size_divisible_by extra_vocab_size "
        "ckpt_format workers verify"
    )
    return Options(
        loads=LOADERS[options.loader],
        saves=options.save_model_type,
        step=options.ckpt_step,
        trust=options.trust_pickle,
        tokenizer=options.tokenizer_model,
        topk=options.moe_router_topk,
        dtype=options.params_dtype and getattr(torch, DTYPES[options.params_dtype]),
        build=Build(options.transformer_impl, options.moe_grouped_gemm),
        **sizes,
        **{name: getattr(options, name) for name in same.split()},
    )


def default_workers() -> int:
    """Two at least: while one thread waits for the disk, another computes checksums."""
    return min(MOST_WORKERS, max(2, len(os.sched_getaffinity(0))))


class Bars:
    """Progress on standard error."""

    def say(self, text: str) -> None:
        """One line."""
        print(text, file=sys.stderr)

    def bar(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Callable[[int], None]]:
        """A bar of bytes; where nobody looks at it, a line a minute."""
        return self._bar(what, total, done)

    @contextmanager
    def _bar(self, what: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
        from tqdm import tqdm

        pause = 0.2 if sys.stderr.isatty() else 60
        with tqdm(
            desc=what, total=total, initial=done, unit="B", unit_scale=True, mininterval=pause, file=sys.stderr
        ) as bar:
            yield bar.update


if __name__ == "__main__":
    sys.exit(main())
