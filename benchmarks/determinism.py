"""``python -m benchmarks.determinism``: what deterministic computing costs a training step, with and without in turns.

Both sides are Megatron-LM with every patch; one has ``ASCEND_PATCH_DETERMINISTIC=1``. The figure is of the cpu device,
where the price is mostly PyTorch's: ``torch.empty`` is filled, and some kernels add in a fixed order. It says nothing
about an accelerator, where communication and matrix products pay too; ``--device`` runs it there.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ascend_patch.commands.options import positive
from benchmarks import contestants
from benchmarks.report import write_json
from benchmarks.statistics import Sample, ratios
from benchmarks.worker import ROOT, Worker, WorkerError
from benchmarks.workload import DTYPES

SIDES = {"without": {}, "with": {"ASCEND_PATCH_DETERMINISTIC": "1"}}


def main() -> None:
    """See the module's docstring."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        for dtype in options.dtype or DTYPES:
            seconds = measure(dtype, options)
            print(line(dtype, seconds["without"], seconds["with"]), flush=True)
            write_json(options.out / f"{dtype}.json", seconds)
    except WorkerError as error:
        sys.exit(f"benchmarks: {error}")


def measure(dtype: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step of each side, one number a round.

    Raises:
        WorkerError: a side failed.
    """
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        workers = {}
        for side, variables in SIDES.items():
            command = ("-m", "benchmarks.workers.megatron", *contestants.flags(dtype), *contestants.GPU_FLAGS)
            entrant = contestants.Contestant(
                side,
                side,
                command,
                {**contestants.single_process(), "ASCEND_PATCH_DEVICE": options.device, **variables},
            )
            environment = contestants.environment(entrant, options.threads)
            workers[side] = stack.enter_context(Worker(command, environment, options.out / f"{dtype}-{side}.log"))
            workers[side].run(options.warm_up)
        for _ in range(options.rounds):
            for side, worker in workers.items():
                taken = worker.run(options.steps)["seconds"]
                seconds[side].append(sum(taken) / len(taken))
    return seconds


def line(dtype: str, without: Sequence[float], with_: Sequence[float]) -> str:
    """The figures in one line."""
    ratio = ratios(with_, without)
    spread = f"{ratio.low:.2f} to {ratio.high:.2f} over {ratio.count} rounds"
    return (
        f"{dtype}: {Sample.of(without).median:.2f} s a step without, {Sample.of(with_).median:.2f} s with "
        f"deterministic computing; with/without = {ratio.median:.2f} ({spread})"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.determinism", description="The cost of deterministic computing.")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="only this one (default: both)")
    parser.add_argument("--device", choices=("cpu", "cuda", "npu"), default="cpu")
    parser.add_argument("--rounds", type=positive, default=6, help="turns of each side")
    parser.add_argument("--steps", type=positive, default=2, help="training steps in a turn")
    parser.add_argument("--warm-up", type=positive, default=6, help="steps before the first round, not counted")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="of each process")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark" / "determinism", help="folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
