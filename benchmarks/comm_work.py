"""``python -m benchmarks.comm_work``: the collectives of a training step by layout, on the simulated device.

Eight ranks train a small Mixtral with upstream's loop: *stock* with torch_npu's translation of ``torch.cuda`` and the
flags that upstream needs without TransformerEngine, *ours* with every patch and the flags of a GPU script. Counted is
what rank 0 gives to collectives in the last of a few steps. Tokens go to the experts in equal shares, on both sides
the same. Upstream cannot split a sequence without TransformerEngine: context parallel layouts have one side.

Nothing here is a time: a simulated device has none. Whether a collective *can hide* is read off the order of launches
and waits (:func:`ascend_sim.timeline.spans`): it can if computation is launched after it that need not wait for it.
*Beside* is how many launches that are, for one that can. A picture shows the order.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ascend_sim.timeline import Event, spans
from benchmarks import comm_figure, contestants
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
BUCKET = 100_000
"""Parameters: about a layer's attention, as in a large model. Upstream's least would hold all of this one."""
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


@dataclass
class Share:
    """The collectives of one row, or of several.

    Attributes:
        calls, bytes: how many there are; what this rank contributes.
        hiding_calls, hiding_bytes: of those that can hide.
        beside: launches beside these, a launch for each collective that it is beside.
    """

    calls: float = 0
    bytes: float = 0
    hiding_calls: float = 0
    hiding_bytes: float = 0
    beside: float = 0

    def __add__(self, other: "Share") -> "Share":
        return Share(*(one + two for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __truediv__(self, parts: int) -> "Share":
        return Share(*(value / parts for value in vars(self).values()))


Work = Mapping[Row, Share]
"""The collectives of one step of one rank."""


def work(events: Sequence[Event]) -> Work:
    """Sums up a record by row."""
    rows: dict[Row, Share] = defaultdict(Share)
    for span in spans(events):
        event, beside = span.event, len(span.beside)
        row = (event.scope == LAYER, event.name, event.group)
        rows[row] += Share(1, event.bytes, bool(beside), event.bytes * bool(beside), beside)
    return rows


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="benchmarks.comm_work", description="The collectives of a training step.")
    parser.add_argument("--layout", choices=LAYOUTS, action="append", help="only this one (default: all)")
    folder = ROOT / "runs" / "benchmark" / "comm_work"
    parser.add_argument("--out", type=Path, default=folder, help="folder for results and pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for layout in options.layout or LAYOUTS:
        sides = ("ours",) if "CP" in layout else ("stock", "ours")
        events = {side: _record(side, layout, options.out) for side in sides}
        counted = {side: work(record) for side, record in events.items()}
        print(table(layout, counted, MODEL.num_layers) + "\n", flush=True)
        name = _file(layout)
        rows = {side: [[*row, asdict(share)] for row, share in found.items()] for side, found in counted.items()}
        write_json(options.out / f"{name}.json", rows)
        comm_figure.draw(f"{layout}: one training step of one of {RANKS} ranks", events, options.out / f"{name}.png")


def table(layout: str, sides: Mapping[str, Work], layers: int) -> str:
    """Calls, KiB, KiB that can hide and launches beside them, those of layers for one layer, with the step's totals.

    Args:
        sides: ``"ours"``, and ``"stock"`` before it where upstream can train this layout.
        layers: of this rank.
    """
    lines = [f"{f'{layout}, {RANKS} ranks, bf16, simulated device':<70}" + "".join(f"{side:>37}" for side in sides)]
    lines.append(f"{'one training step':<70}" + f"{'calls':>9}{'KiB':>9}{'can hide':>10}{'beside':>9}" * len(sides))
    rows = sorted(set().union(*sides.values()), key=lambda row: (not row[0], row))
    for is_inside, title in ((True, "each layer"), (False, "the rest")):
        lines.append(f"  {title}")
        for row in (row for row in rows if row[0] == is_inside):
            shares = [side.get(row, Share()) / (layers if is_inside else 1) for side in sides.values()]
            lines.append(f"    {f'{row[1]}, {row[2]}':<66}" + _cells(shares))
    lines.append(f"  {'the whole step':<68}" + _cells([sum(side.values(), Share()) for side in sides.values()]))
    if "stock" not in sides:
        lines.append("  stock upstream cannot train this layout: its context parallelism is TransformerEngine's")
        return "\n".join(lines)
    if "TP" in layout:
        lines.append(f"  stock has patch {SEQUENCE_PARALLEL_NORM}, without which it cannot train this layout")
    totals = {name: _by_group(side) for name, side in sides.items()}
    above = [name for name in totals["ours"] if totals["ours"][name] > totals["stock"].get(name, 0)]
    verdict = f"MISSED ({', '.join(above)})" if above else "met"
    lines.append(f"  bytes never above upstream's for the same flags, of each group and in total: {verdict}")
    return "\n".join(lines)


def _by_group(side: Work) -> Mapping[str, float]:
    """Bytes of each group, in layers and in the rest, and in total; kinds may stand for one another."""
    sums: dict[str, float] = defaultdict(float)
    for (is_inside, _, group), share in side.items():
        sums[f"{group} in {'layers' if is_inside else 'the rest'}"] += share.bytes
        sums["total"] += share.bytes
    return sums


def _cells(shares: Sequence[Share]) -> str:
    return "".join(
        f"{share.calls:>9,g}{share.bytes / 2**10:>9,.1f}{share.hiding_bytes / 2**10:>10,.1f}"
        f"{share.beside / share.hiding_calls if share.hiding_calls else 0:>9,.0f}"
        for share in shares
    )


def _file(layout: str) -> str:
    return layout.replace(" ", "_").lower()


def _record(side: str, layout: str, folder: Path) -> list[Event]:
    name = f"{_file(layout)}-{side}"
    own = contestants.STOCK_FLAGS if side == "stock" else contestants.GPU_FLAGS
    of_one_sequence = math.prod(int(part[2:]) for part in layout.split() if part[:2] in ("TP", "CP"))
    batch = str(contestants.workload.MICRO_BATCH * MICRO_BATCHES * RANKS // of_one_sequence)
    flags = (*contestants.flags("bf16", MODEL), *own, *LAYOUTS[layout], "--mock-data")
    flags += ("--global-batch-size", batch, "--train-iters", str(STEPS), "--no-create-attention-mask-in-dataloader")
    flags += ("--moe-router-force-load-balancing", "--ddp-bucket-size", str(BUCKET))
    recorded, log = folder / f"{name}.events.json", folder / f"{name}.log"
    recorded.unlink(missing_ok=True)
    command = ["-m", "ascend_sim", "run", "--", sys.executable, "-m", "benchmarks.workers.comm_work"]
    kept = frozenset({SEQUENCE_PARALLEL_NORM} if "TP" in layout else ())
    variables = contestants.without_patches(kept) if side == "stock" else {}
    device = {"ASCEND_PATCH_DEVICE": "npu", "ASCEND_SIM_DEVICES": str(RANKS), "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        ended = subprocess.run(
            [sys.executable, *command, str(recorded), str(RANKS), *flags],
            cwd=ROOT,
            env={**os.environ, **contestants.single_process(), "LOCAL_WORLD_SIZE": str(RANKS), **device, **variables},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode != 0:
        sys.exit(f"benchmarks: the {side} side of {layout} ended with {ended.returncode}; see {log}")
    return [Event(*event) for event in json.loads(recorded.read_text())]


if __name__ == "__main__":
    main()
