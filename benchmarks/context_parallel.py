"""``python -m benchmarks.context_parallel``: what context parallelism leaves of attention's memory on each rank.

Forward and backward of causal attention in bfloat16 with the ratio of Mixtral's heads, at reduced width, for several
lengths and numbers of ranks. Counted on the simulated device is what torch_npu's allocator hands out at most, inputs
and gradients included, but for the mask that all layers share; what an operator of a real NPU needs for itself is not
in it.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.report import write_json
from benchmarks.worker import ROOT
from benchmarks.workload import ATTENTION_HEADS

TYPES = ("p2p", "a2a", "allgather")
RANKS = (1, 2, 4, 8)
LENGTHS = (1024, 2048, 4096)

Peaks = Mapping[int, Mapping[int, int]]
"""By number of ranks and length, bytes."""


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.context_parallel", description="Attention's memory on each rank.")
    parser.add_argument("--length", type=int, nargs="+", default=LENGTHS, help="tokens of the whole sequence")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "context_parallel", help="folder for results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in TYPES:
        peaks = {ranks: _count(kind, ranks, options.length, options.out) for ranks in RANKS}
        print(table(kind, peaks) + "\n", flush=True)
        write_json(options.out / f"{kind}.json", {str(ranks): by_length for ranks, by_length in peaks.items()})


def table(kind: str, peaks: Peaks) -> str:
    """MiB of a rank by length and number of ranks, and what is left of one rank's."""
    heads, groups, size = ATTENTION_HEADS
    lines = [
        f"{kind}, simulated device: peak MiB of a rank, {heads} heads in {groups} groups of size {size}, bf16",
        f"  {'tokens':<10}" + "".join(f"{f'CP{ranks}':>16}" for ranks in peaks),
    ]
    for length in peaks[1]:
        cells = [f"{by[length] / 2**20:>9.2f} {by[length] / peaks[1][length]:>5.3f}x" for by in peaks.values()]
        lines.append(f"  {length:<10,}" + "".join(cells))
    return "\n".join(lines)


def _count(kind: str, ranks: int, lengths: list[int], folder: Path) -> dict[int, int]:
    target, log = folder / f"{kind}-{ranks}.counted.json", folder / f"{kind}-{ranks}.log"
    worker = ["-m", "benchmarks.workers.context_parallel", str(target), str(ranks), kind, *map(str, lengths)]
    with log.open("w") as stream:
        ended = subprocess.run(
            [sys.executable, "-m", "ascend_sim", "run", "--", sys.executable, *worker],
            cwd=ROOT,
            env={**os.environ, "ASCEND_SIM_DEVICES": str(ranks), "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode != 0:
        sys.exit(f"benchmarks: {kind} with {ranks} ranks ended with {ended.returncode}; see {log}")
    return {int(length): peak for length, peak in json.loads(target.read_text()).items()}


if __name__ == "__main__":
    main()
