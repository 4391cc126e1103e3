"""``python -m benchmarks.npu_work``: what a training step asks of an NPU, stock against fused, on the simulated device.

Both sides train the same Mixtral with upstream's loop. *Stock* has torch_npu's translation of ``torch.cuda`` and the
flags that upstream needs without TransformerEngine; *fused* has every patch and the flags of a GPU script. Counted is
the last of a few steps, on both sides alike (:mod:`ascend_sim.counters` says what counts as what). Nothing here is a
time: a simulated device has none.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_sim import report
from benchmarks import contestants
from benchmarks.report import write_json
from benchmarks.worker import ROOT
from benchmarks.workload import NPU_MODELS

STEPS = 3
LIMITS = {"launches": 1 / 3, "bytes": 0.6}
"""What the fused side may have of the stock one's."""
SYNCS_BESIDE_LAYERS = 2
"""Host synchronisations that the fused side may have beside one a MoE layer: a gradient check, the gradient norm."""
REST = "loss, gradients, logging"
"""The part of a step that no scope covers."""


@dataclass(frozen=True)
class Work:
    """The figures of one step.

    Attributes:
        launches, bytes: by part of the model; bytes read and written.
        syncs: host synchronisations by operator.
        uploads: copies from the host.
        collectives, collective_bytes: of this process.
        peak_memory: bytes that torch_npu's allocator handed out at most.
    """

    launches: Mapping[str, int]
    bytes: Mapping[str, int]
    syncs: Mapping[str, int]
    uploads: int
    collectives: int
    collective_bytes: int
    peak_memory: int

    @classmethod
    def of(cls, step: Mapping[str, Any]) -> "Work":
        """From one step of a report of the simulator."""
        launches: Counter[str] = Counter()
        moved: Counter[str] = Counter()
        for row in step["launches"]:
            launches[row["scope"] or REST] += row["count"]
            moved[row["scope"] or REST] += row["bytes_read"] + row["bytes_written"]
        syncs: Counter[str] = Counter()
        for row in step["syncs"]:
            syncs[f"{row['name']} in {row['scope'] or REST}"] += row["count"]
        return cls(
            launches,
            moved,
            syncs,
            sum(row["count"] for row in step["uploads"]),
            sum(row["count"] for row in step["collectives"]),
            sum(row["bytes"] for row in step["collectives"]),
            step["peak_memory_bytes"],
        )


def main() -> None:
    """See the module's docstring."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.model or NPU_MODELS:
        sides = {side: _count(side, name, options.dtype, options.out) for side in ("stock", "fused")}
        print(table(name, options.dtype, sides["stock"], sides["fused"]) + "\n", flush=True)
        write_json(options.out / f"{name}.json", {side: vars(work) for side, work in sides.items()})


def table(name: str, dtype: str, stock: Work, fused: Work) -> str:
    """One table: launches and bytes by part of the model, then the totals with their limits."""
    head = f"{name}, {dtype}, simulated device: one training step"
    lines = [f"{head:<44}{'launches':>18}{'ratio':>7}{'MiB read + written':>22}{'ratio':>7}"]
    for part in sorted({*stock.bytes, *fused.bytes}, key=lambda part: (-stock.bytes.get(part, 0), part)):
        lines.append(_row(part, stock, fused, [part]))
    lines.append(_row("all", stock, fused, [*{*stock.launches, *fused.launches}]))
    for title, one, other in (
        ("host syncs", sum(stock.syncs.values()), sum(fused.syncs.values())),
        ("uploads", stock.uploads, fused.uploads),
        ("collectives", stock.collectives, fused.collectives),
        ("collective bytes, MiB", stock.collective_bytes / 2**20, fused.collective_bytes / 2**20),
        ("peak memory, MiB", stock.peak_memory / 2**20, fused.peak_memory / 2**20),
    ):
        lines.append(f"  {title:<42}{one:>9,.0f}{other:>9,.0f}{_ratio(other, one):>7}")
    lines.append("  left: " + (", ".join(f"{n} x {name}" for name, n in fused.syncs.items()) or "no host sync"))
    for figure, limit in LIMITS.items():
        one, other = (sum(getattr(work, figure).values()) for work in (stock, fused))
        verdict = "met" if other <= limit * one else "MISSED"
        lines.append(f"  {figure}: {other / one:.3f} of stock, at most {limit:.3f}: {verdict}")
    syncs, limit = sum(fused.syncs.values()), NPU_MODELS[name].num_layers + SYNCS_BESIDE_LAYERS
    lines.append(f"  host syncs: {syncs}, at most {limit}: {'met' if syncs <= limit else 'MISSED'}")
    return "\n".join(lines)


def _row(title: str, stock: Work, fused: Work, parts: list[str]) -> str:
    launches = [sum(work.launches.get(part, 0) for part in parts) for work in (stock, fused)]
    moved = [sum(work.bytes.get(part, 0) for part in parts) for work in (stock, fused)]
    return (
        f"  {title:<42}{launches[0]:>9,}{launches[1]:>9,}{_ratio(launches[1], launches[0]):>7}"
        f"{moved[0] / 2**20:>11,.1f}{moved[1] / 2**20:>11,.1f}{_ratio(moved[1], moved[0]):>7}"
    )


def _ratio(one: float, other: float) -> str:
    return f"{one / other:.2f}" if other else "-"


def _count(side: str, name: str, dtype: str, folder: Path) -> Work:
    own = contestants.STOCK_FLAGS if side == "stock" else contestants.GPU_FLAGS
    flags = [*contestants.flags(dtype, NPU_MODELS[name]), *own, "--train-iters", str(STEPS)]
    variables = contestants.without_patches() if side == "stock" else {}
    counted, log = folder / f"{name}-{side}.report.json", folder / f"{name}-{side}.log"
    command = ["-m", "ascend_sim", "run", "--report", str(counted), "--", sys.executable]
    with log.open("w") as stream:
        ended = subprocess.run(
            [sys.executable, *command, "-m", "benchmarks.workers.npu_work", "--model", name, *flags],
            cwd=ROOT,
            env={**os.environ, **contestants.single_process(), "ASCEND_PATCH_DEVICE": "npu", **variables},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode != 0:
        sys.exit(f"benchmarks: the {side} side of {name} ended with {ended.returncode}; see {log}")
    return Work.of(report.last_step(report.read(counted)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.npu_work", description="What a step asks of an NPU.")
    parser.add_argument("--model", choices=NPU_MODELS, action="append", help="only this one (default: both)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "npu_work", help="folder for reports and logs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
