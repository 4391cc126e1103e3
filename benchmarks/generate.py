"""``python -m benchmarks.generate``: prefill and decoding of our engine, beside transformers' ``generate``.

Both have the same weights and complete the same random prompts greedily, in turns; what slows the machine down slows
both. Prompts and their completions have the lengths of ``--lengths``; of short ones, which take tens of milliseconds,
there are more rounds.
"""

import argparse
import os
import random
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ascend_patch.commands.options import positive
from benchmarks.contestants import GPU_FLAGS, Contestant, environment, flags, single_process
from benchmarks.report import write_json
from benchmarks.statistics import Sample, ratios
from benchmarks.worker import ROOT, Worker, WorkerError
from benchmarks.workload import DTYPES, MODEL, SEED, TORCH_DTYPES
from tools.train.gemm import Mixtral

LENGTHS = (512, 256, 128, 64)
"""A quarter of what the grid has for accelerators."""
BATCHES = (1, 8)
OURS, THEIRS = "ascend_patch", "transformers"


@dataclass(frozen=True)
class Cell:
    """What one batch of one length came to.

    Attributes:
        prompt, new: tokens of each prompt and of each completion.
        prefill, decode: tokens a second, by contestant.
        peak: MiB, the most memory that the process had, by contestant.
        prefill_ratio, decode_ratio: ours over transformers', round by round.
    """

    prompt: int
    new: int
    batch: int
    prefill: dict[str, Sample]
    decode: dict[str, Sample]
    peak: dict[str, float]
    prefill_ratio: Sample
    decode_ratio: Sample

    @property
    def ahead(self) -> bool:
        """In both."""
        return min(self.prefill_ratio.median, self.decode_ratio.median) > 1


def main() -> None:
    """See the module's docstring."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    model = replace(MODEL, seq_length=2 * max(options.lengths))
    print(
        f"Mixtral of {model.num_layers} layers, hidden {model.hidden_size}, {model.num_experts} experts, "
        f"{options.dtype}, cpu with {options.threads} threads; load average {os.getloadavg()[0]:.1f}; "
        f"{options.rounds} rounds, more of shorter prompts\n\n{HEAD}",
        flush=True,
    )
    cells = []
    try:
        with tempfile.TemporaryDirectory(prefix="generate.", dir=options.out) as name, ExitStack() as stack:
            workers = {
                each.title: stack.enter_context(
                    Worker(each.command, environment(each, options.threads), options.out / f"{each.title}.log")
                )
                for each in contestants(options.dtype, model, max(options.batches), Path(name))
            }
            for length in options.lengths:
                rounds = options.rounds * max(options.lengths) // length
                for batch in options.batches:
                    cells.append(measure(workers, length, length, batch, rounds))
                    print(row(cells[-1]), flush=True)
    except WorkerError as error:
        sys.exit(f"benchmarks: {error}")
    behind = sum(not cell.ahead for cell in cells)
    print(f"\nahead of transformers in every cell: {'met' if not behind else f'MISSED in {behind} of {len(cells)}'}")
    results = options.out / "results.json"
    write_json(results, {"schema": 1, "dtype": options.dtype, "cells": [asdict(cell) for cell in cells]})
    print(f"all figures: {results}")


def contestants(dtype: str, model: Mixtral, batch: int, folder: Path) -> tuple[Contestant, Contestant]:
    """Both, with the same weights: those that transformers draws, written to ``folder``."""
    from transformers import MixtralForCausalLM
    from transformers.utils import logging

    from ascend_patch.checkpoint.convert import Options, convert
    from benchmarks.workers.hugging_face import config

    logging.disable_progress_bar()
    hf = folder / "hf"
    MixtralForCausalLM._from_config(config(model, use_cache=True), dtype=TORCH_DTYPES[dtype]).save_pretrained(hf)
    checkpoint = convert(Options(hf, folder / "megatron", make_vocab_size_divisible_by=1))
    ours = (str(batch), str(model.seq_length), *flags(dtype, model), *GPU_FLAGS, "--load", str(checkpoint))
    theirs = (str(hf), dtype)
    return (
        Contestant("a", OURS, ("-m", "benchmarks.workers.generate_megatron", *ours), single_process()),
        Contestant("b", THEIRS, ("-m", "benchmarks.workers.generate_hugging_face", *theirs), {}),
    )


def measure(workers: dict[str, Worker], prompt: int, new: int, batch: int, rounds: int) -> Cell:
    """Let the contestants complete the same prompts in turns, new ones each round; the first is not counted."""
    prefill: dict[str, list[float]] = {name: [] for name in workers}
    decode: dict[str, list[float]] = {name: [] for name in workers}
    peak = dict.fromkeys(workers, 0.0)
    for number in range(rounds + 1):
        request = _request(prompt, new, batch, SEED + number)
        for name, worker in workers.items():
            answer = worker.ask(request)
            if not number:
                continue
            prefill[name].append(batch * prompt / answer["prefill"])
            decode[name].append(answer["decoded"] / answer["decode"])
            peak[name] = max(peak[name], answer["peak"] / 2**20)
    return Cell(
        prompt,
        new,
        batch,
        {name: Sample.of(values) for name, values in prefill.items()},
        {name: Sample.of(values) for name, values in decode.items()},
        peak,
        ratios(prefill[OURS], prefill[THEIRS]),
        ratios(decode[OURS], decode[THEIRS]),
    )


HEAD = (
    f"{'[prompt, new] x batch':<24}{'prefill tokens/s':^26}{'decode tokens/s':^26}{'peak MiB':^16}\n"
    f"{'':<24}{'ours':>8}{'theirs':>9}{'ratio':>9}{'ours':>8}{'theirs':>9}{'ratio':>9}{'ours':>8}{'theirs':>8}"
)


def row(cell: Cell) -> str:
    """One line of the table under :data:`HEAD`."""
    parts = [f"{f'[{cell.prompt}, {cell.new}] x {cell.batch}':<24}"]
    for speed, ratio in ((cell.prefill, cell.prefill_ratio), (cell.decode, cell.decode_ratio)):
        parts.append(f"{speed[OURS].median:>8.0f}{speed[THEIRS].median:>9.0f}{ratio.median:>9.2f}")
    parts.append(f"{cell.peak[OURS]:>8.0f}{cell.peak[THEIRS]:>8.0f}{'' if cell.ahead else '  behind'}")
    return "".join(parts)


def _request(prompt: int, new: int, batch: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    prompts = [[draw.randrange(MODEL.vocab_size) for _ in range(prompt)] for _ in range(batch)]
    return {"prompts": prompts, "new": new}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.generate", description="Generation, beside transformers.")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--lengths", type=positive, nargs="+", default=LENGTHS, help="of prompts and completions")
    parser.add_argument("--batches", type=positive, nargs="+", default=BATCHES)
    parser.add_argument("--rounds", type=positive, default=3, help="of the longest; half as long, twice as many")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="of each process")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark" / "generate", help="results and logs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
