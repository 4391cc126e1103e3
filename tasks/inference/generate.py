"""Complete prompts: ``torchrun … -m ascend_patch.run tasks/inference/generate.py MEGATRON'S FLAGS --prompt TEXT``.

Prompts come from ``--prompt``, from a file with one a line, or from standard input. The completions go to standard
output, or as JSON, one object a line, to ``--output``.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from ascend_patch.engine.report import write_text
from ascend_patch.generation import ranks
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.model import initialize
from ascend_patch.generation.options import (
    add_beam_arguments,
    add_engine_arguments,
    add_sampling_arguments,
    build_engine,
    sampling_options,
)


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The script's own arguments, beside Megatron-LM's."""
    group = parser.add_argument_group("prompts")
    group.add_argument("--prompt", action="append", help="a text to go on with; may be given several times")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line")
    group.add_argument("--output", type=Path, metavar="FILE", help="write JSON, one object a prompt, instead of text")
    add_sampling_arguments(parser)
    add_beam_arguments(parser)
    return add_engine_arguments(parser)


def read_prompts(prompt: list[str] | None, file: Path | None) -> list[str]:
    """The prompts of the command line, of the file, or of standard input, in this order.

    Raises:
        GenerationError: there is none, or the file cannot be read.
    """
    found = list(prompt or [])
    if file is not None:
        try:
            found += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise GenerationError(f"--prompts {file} cannot be read: {error}.") from error
    elif not found and not sys.stdin.isatty():
        found = sys.stdin.read().splitlines()
    found = [line for line in found if line.strip()]
    if not found:
        raise GenerationError("There is no prompt: give --prompt TEXT, --prompts FILE, or lines on standard input.")
    return found


def main() -> None:
    """See the module's docstring."""
    args = initialize(arguments)
    prompts = read_prompts(args.prompt, args.prompts)
    engine = build_engine(args, prefix_caching=False)
    ids = [engine.tokenizer(text)["input_ids"] for text in prompts]
    requests = engine.generate(ids, sampling_options(args))
    if ranks.first():
        results = [
            {"prompt": prompt, "completion": request.text, "tokens": len(request.tokens), "finish": request.finish}
            for prompt, request in zip(prompts, requests, strict=True)
        ]
        if args.output:
            write_text(args.output, "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results))
        else:
            for result in results:
                print(f"\n{result['prompt']}{result['completion']}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
