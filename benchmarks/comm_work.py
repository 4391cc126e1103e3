"""``python -m benchmarks.comm_work``: the collectives of a training step by layout, on the simulated device.

Eight ranks train a small Mixtral with upstream's loop: *stock* with torch_npu's translation of ``torch.cuda`` and the
flags that upstream needs without TransformerEngine, *ours* with every patch and the flags of a GPU script. Counted is
what rank 0 gives to collectives in the last of a few steps. Tokens go to random experts in about equal shares, so that
their bytes depend little on initial weights; they are not exactly those of the other side. Upstream cannot split a
sequence without TransformerEngine: context parallel layouts have one side. Nothing here is a time: a simulated device
has none.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import contestants
from benchmarks.report import write_json
from benchmarks.worker import ROOT
from benchmarks.workers.comm_work import LAYER
from tools.train.gemm import Mixtral

RANKS, STEPS, MICRO_BATCHES = 8, 2, 2
MODEL = Mixtral(
    num_layers=2,
    hidden_size=128,
    ffn_hidden_size=256,
    num_attention_heads=8,
    num_query_groups=4,
    num_experts=8,
    moe_router_topk=2,
    vocab_size=1024,
    seq_length=128,
)
_TP2 = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
_EP, _CP = "--expert-model-parallel-size", "--context-parallel-size"
LAYOUTS = {
    "EP8": (_EP, "8"),
    "TP2 EP4": (*_TP2, _EP, "4", "--expert-tensor-parallel-size", "1"),
    "CP4": (_CP, "4"),
    "CP2 TP2 EP2": (_CP, "2", *_TP2, _EP, "2", "--expert-tensor-parallel-size", "1"),
}
SEQUENCE_PARALLEL_NORM = "norm.torch_norm"
"""Stock keeps it with tensor parallelism: upstream's norm refuses sequence parallelism, which experts need."""
Row = tuple[bool, str, str]
"""Whether it is inside of a layer, kind, group."""


@dataclass(frozen=True)
class Work:
    """The collectives of one step of one rank: how many there are, and the bytes that it contributes."""

    count: Mapping[Row, int]
    bytes: Mapping[Row, int]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> "Work":
        """From rows of the simulator's counters."""
        count: Counter[Row] = Counter()
        moved: Counter[Row] = Counter()
        for row in rows:
            key = (row["scope"] == LAYER, row["name"], row["group"].removesuffix("_GROUP").lower())
            count[key] += row["count"]
            moved[key] += row["bytes"]
        return cls(count, moved)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.comm_work", description="The collectives of a training step.")
    parser.add_argument("--layout", choices=LAYOUTS, action="append", help="only this one (default: all)")
    folder = ROOT / "runs" / "benchmark" / "comm_work"
    parser.add_argument("--out", type=Path, default=folder, help="folder for results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for layout in options.layout or LAYOUTS:
        stock = None if "CP" in layout else _count("stock", layout, options.out)
        ours = _count("ours", layout, options.out)
        print(table(layout, stock, ours, MODEL.num_layers) + "\n", flush=True)


def table(layout: str, stock: Work | None, ours: Work, layers: int) -> str:
    """Count and KiB of each kind and group, those of layers for one layer, with the totals of the step.

    Args:
        stock: None where upstream cannot train this layout.
        layers: of this rank.
    """
    sides = [ours] if stock is None else [stock, ours]
    names = ("ours",) if stock is None else ("stock", "ours")
    head = f"{layout}, {RANKS} ranks, bf16, simulated device: one training step"
    lines = [f"{head:<66}" + "".join(f"{f'{name}: calls':>16}{'KiB':>11}" for name in names)]
    rows = sorted(set().union(*(side.count for side in sides)), key=lambda row: (not row[0], row))
    for inside in (True, False):
        for row in (row for row in rows if row[0] == inside):
            title = f"{'each layer' if inside else 'the rest'}: {row[1]}, {row[2]}"
            lines.append(f"  {title:<64}" + _cells([_of(side, row, layers if inside else 1) for side in sides]))
    totals = [(sum(side.count.values()), sum(side.bytes.values())) for side in sides]
    lines.append(f"  {'the whole step':<64}" + _cells(totals))
    if stock is None:
        lines.append("  stock upstream cannot train this layout: its context parallelism is TransformerEngine's")
    else:
        if "TP" in layout:
            lines.append(f"  stock has patch {SEQUENCE_PARALLEL_NORM}, without which it cannot train this layout")
        verdict = "met" if totals[1][1] <= totals[0][1] else "MISSED"
        lines.append(f"  bytes never above upstream's for the same flags: {verdict}")
    return "\n".join(lines)


def _of(work: Work, row: Row, parts: int) -> tuple[float, float]:
    return work.count.get(row, 0) / parts, work.bytes.get(row, 0) / parts


def _cells(figures: Iterable[tuple[float, float]]) -> str:
    return "".join(f"{count:>16,g}{moved / 2**10:>11,.1f}" for count, moved in figures)


def _count(side: str, layout: str, folder: Path) -> Work:
    name = f"{layout.replace(' ', '_').lower()}-{side}"
    own = contestants.STOCK_FLAGS if side == "stock" else contestants.GPU_FLAGS
    batch = str(contestants.workload.MICRO_BATCH * MICRO_BATCHES * RANKS)
    flags = (*contestants.flags("bf16", MODEL), *own, *LAYOUTS[layout], "--mock-data")
    flags += ("--global-batch-size", batch, "--train-iters", str(STEPS), "--no-create-attention-mask-in-dataloader")
    flags += ("--moe-router-force-load-balancing",)
    counted, log = folder / f"{name}.counted.json", folder / f"{name}.log"
    counted.unlink(missing_ok=True)
    command = ["-m", "ascend_sim", "run", "--", sys.executable, "-m", "benchmarks.workers.comm_work"]
    kept = frozenset({SEQUENCE_PARALLEL_NORM} if "TP" in layout else ())
    variables = contestants.without_patches(kept) if side == "stock" else {}
    device = {"ASCEND_PATCH_DEVICE": "npu", "ASCEND_SIM_DEVICES": str(RANKS), "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        ended = subprocess.run(
            [sys.executable, *command, str(counted), str(RANKS), *flags],
            cwd=ROOT,
            env={**os.environ, **contestants.single_process(), "LOCAL_WORLD_SIZE": str(RANKS), **device, **variables},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode != 0:
        sys.exit(f"benchmarks: the {side} side of {layout} ended with {ended.returncode}; see {log}")
    rows = json.loads(counted.read_text())
    write_json(folder / f"{name}.json", {"rows": rows})
    return Work.of(rows)


if __name__ == "__main__":
    main()
