"""``python -m benchmarks.context_parallel``: what context parallelism leaves of attention's memory on each rank.

Forward and backward of causal attention in bfloat16 with the ratio of Mixtral's heads, a quarter of them, for several
lengths and numbers of ranks. Counted on the simulated device is what torch_npu's allocator is asked for, inputs and
gradients included, but for the mask that all layers share; what an operator of a real NPU needs for itself is not in
it. Attention allocates its results and is not computed (``ascend-sim run --shapes-only``): 131,072 tokens would take
hours.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report import write_json
from benchmarks.worker import ROOT
from benchmarks.workload import ATTENTION_HEADS

TYPES = ("p2p", "a2a", "allgather")
RANKS = (1, 2, 4, 8)
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
MEASURES = {
    "kept": "kept between forward and backward",
    "peak": "the most at any time",
}

Figures = Mapping[int, Mapping[int, Mapping[str, int]]]
"""By number of ranks, length and measure, bytes."""


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.context_parallel", description="Attention's memory on each rank.")
    parser.add_argument("--type", choices=TYPES, action="append", help="only this one (default: all)")
    parser.add_argument("--length", type=int, nargs="+", default=LENGTHS, help="tokens of the whole sequence")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "context_parallel", help="folder for results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in options.type or TYPES:
        figures = {ranks: count(kind, ranks, options.length, options.out) for ranks in RANKS}
        print(table(kind, figures) + "\n", flush=True)
        write_json(options.out / f"{kind}.json", {str(ranks): by_length for ranks, by_length in figures.items()})


def table(kind: str, figures: Figures) -> str:
    """MiB of a rank by measure, length and number of ranks, and what is left of one rank's."""
    heads, groups, size = ATTENTION_HEADS
    lines = [f"{kind}, simulated device: MiB of a rank, {heads} heads in {groups} groups of size {size}, bf16"]
    for measure, title in MEASURES.items():
        lines.append(f"  {title:<36}" + "".join(f"{f'CP{ranks}':>17}" for ranks in figures))
        for length in figures[1]:
            whole = figures[1][length][measure]
            of_ranks = [by_length[length][measure] for by_length in figures.values()]
            cells = [f"{part / 2**20:>10.2f} {part / whole:>5.3f}x" for part in of_ranks]
            lines.append(f"    {f'{length:,} tokens':<34}" + "".join(cells))
    return "\n".join(lines)


def count(kind: str, ranks: int, lengths: Sequence[int], folder: Path) -> dict[int, dict[str, int]]:
    """Bytes of the rank that needs most, by length and measure.

    Args:
        kind: one of :data:`TYPES`.
        ranks: context parallel size; 1 is attention of one rank.
        lengths: tokens of the whole sequence, multiples of ``2 * ranks``.
        folder: for the log.
    """
    target, log = folder / f"{kind}-{ranks}.counted.json", folder / f"{kind}-{ranks}.log"
    worker = ["-m", "benchmarks.workers.context_parallel", str(target), str(ranks), kind, *map(str, lengths)]
    with log.open("w") as stream:
        ended = subprocess.run(
            [sys.executable, "-m", "ascend_sim", "run", "--shapes-only", "--", sys.executable, *worker],
            cwd=ROOT,
            env={**os.environ, "ASCEND_SIM_DEVICES": str(ranks), "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode != 0:
        sys.exit(f"benchmarks: {kind} with {ranks} ranks ended with {ended.returncode}; see {log}")
    counted = json.loads(target.read_text())
    return {int(length): dict(zip(MEASURES, figures, strict=True)) for length, figures in counted.items()}


if __name__ == "__main__":
    main()
