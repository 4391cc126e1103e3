"""``python -m benchmarks``: run it all, print the tables, write ``runs/benchmark/results.json``."""

import argparse
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from ascend_patch.commands.options import positive, whole
from benchmarks import activation, report, training
from benchmarks.worker import ROOT, WorkerError
from benchmarks.workload import DTYPES, MICRO_BATCH, MODEL


def main() -> None:
    """See the module's docstring."""
    options = _options()
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    machine = {
        "python": platform.python_version(),
        **{
            name: importlib.metadata.version(name)
            for name in ("ascend-patch", "megatron-core", "transformers", "torch")
        },
        "threads": options.threads,
        "same_malloc": options.same_malloc,
        "load_average": os.getloadavg()[0],
    }
    print(
        f"Mixtral of {MODEL.num_layers} layers, hidden {MODEL.hidden_size}, {MODEL.num_experts} experts, sequence "
        f"{MODEL.seq_length}, micro batch {MICRO_BATCH}; {MODEL.flops_per_token / 1e6:.0f} MFLOP a token\n"
        f"{', '.join(f'{name} {value}' for name, value in machine.items())}\n",
        flush=True,
    )
    plan = training.Plan(options.rounds, options.steps, options.warm_up, options.threads, options.same_malloc)
    comparisons, cost = [], None
    try:
        for dtype in options.dtype or DTYPES:
            comparisons.append(training.measure(dtype, plan, folder, _progress))
            print(report.training_table(comparisons[-1]) + "\n", flush=True)
        if options.import_pairs:
            cost = activation.measure(options.import_pairs, _progress)
            print(report.activation_line(cost))
    except WorkerError as error:
        sys.exit(f"benchmarks: {error}")
    results = folder / "results.json"
    report.write_json(results, report.as_dict(machine, comparisons, cost))
    print(f"\nall figures: {results}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Side-by-side measurements; see benchmarks/.")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="only this one (default: both)")
    parser.add_argument("--rounds", type=positive, default=10, help="turns of each contestant")
    parser.add_argument("--steps", type=positive, default=2, help="training steps in a turn")
    parser.add_argument("--warm-up", type=positive, default=12, help="steps before the first round, not counted")
    parser.add_argument("--same-malloc", action="store_true", help="a and c get the settings of malloc that b has")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="of each process")
    parser.add_argument(
        "--import-pairs", type=whole, default=10, help="of processes for the cost of activation; 0: none"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark", help="folder for results and logs")
    return parser.parse_args()


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
