"""The same training on two devices: what must agree, and how closely."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

from tests.system_tests.launcher import Run, train
from tests.system_tests.mixtral import CAPACITY, CP2, EP2, ONE, PP2, TP2_PP2_EP2, TP2_SP, tiny
from tests.system_tests.report import Compared

ITERATIONS = 10

LAYOUTS = {
    "one": (1, ONE),
    "tp2_sp": (2, TP2_SP),
    "ep2": (2, EP2),
    "pp2": (2, PP2),
    "vpp2": (2, PP2 | {"num_layers_per_virtual_pipeline_stage": 1}),
    "tp2_pp2_ep2": (8, TP2_PP2_EP2),
    "cp2": (2, CP2),
    "cp2_tp2_ep2": (4, CP2 | TP2_SP | EP2),
    "etp2": (2, {"expert_tensor_parallel_size": 2}),
    "tp2_ep2_etp1": (2, TP2_SP | EP2 | {"expert_tensor_parallel_size": 1}),
    "ep2_drop": (2, EP2 | CAPACITY),
}
"""Processes and flags by name."""

# Both devices, and every layout, start from one checkpoint: what a device draws from its own generator differs.
SHAPE = {"num_layers": 4, "train_iters": ITERATIONS}
PRECISIONS = {"fp32": {"bf16": False}, "bf16": {}}


CALLED = frozenset({"adam", "attention", "grouped_gemm", "permute", "rms_norm", "rotary", "swiglu", "topk_softmax"})
"""Operators that the first pipeline stage calls, which writes the report; the last one has the loss."""


@dataclass(frozen=True)
class Tolerance:
    """Relative differences of the loss that are allowed: in the first iteration, and in any."""

    first: Decimal
    all: Decimal


TOLERANCES = {
    "fp32": Tolerance(Decimal("1e-6"), Decimal("1e-4")),
    "bf16": Tolerance(Decimal("1e-2"), Decimal("1e-2")),
}


def save_weights(folder: Path, precision: str, **start: object) -> Path:
    """Train one iteration on the host; returns the checkpoint, without the optimizer's state."""
    save = folder / f"weights-{precision}"
    changes = {"train_iters": 1, "save": save, "save_interval": 1, "no_save_optim": True, "no_save_rng": True}
    variables = {"ASCEND_PATCH_DEVICE": "cpu"}
    train(tiny(**{**SHAPE, **PRECISIONS[precision], **changes}), variables=variables, **start).succeeded()
    return save


def train_on(
    device: str, layout: str, precision: str, weights: Path, changes: Mapping = MappingProxyType({}), **start: object
) -> tuple[Run, dict]:
    """Train a layout for ten iterations on "cpu" or "npu".

    Args:
        weights: from :func:`save_weights`; reports go beside it.
        changes: further flags, for :func:`mixtral.tiny`.
        start: passed to :func:`launcher.train`.

    Returns:
        The run, and its ``patches.json``.
    """
    processes, flags = LAYOUTS[layout]
    report = weights.parent / f"{device}-{layout}-{precision}.json"
    run = train(
        tiny(**{**SHAPE, **flags, **PRECISIONS[precision], "load": weights, "finetune": True, **changes}),
        processes=processes,
        variables={"ASCEND_PATCH_REPORT": str(report), "ASCEND_PATCH_DEVICE": device},
        timeout=500,
        **start,
    ).succeeded()
    return run, json.loads(report.read_text())


def losses(run: Run) -> list[float]:
    """Of every iteration, as printed."""
    return [float(run.iterations[i].loss) for i in sorted(run.iterations)]


def check_learned(run: Run) -> None:
    """It logged every iteration, and learned."""
    assert sorted(run.iterations) == list(range(1, ITERATIONS + 1)), run.tail()
    assert run.iterations[ITERATIONS].loss < run.iterations[1].loss - Decimal("0.2")


def check_parity(
    compared: Compared, what: str, run: tuple[str, Run], reference: tuple[str, Run], precision: str
) -> None:
    """Both runs, each with its device, learn, and their losses agree."""
    for _, trained in (run, reference):
        check_learned(trained)
    tolerance = TOLERANCES[precision]
    curves = [(device, losses(trained)) for device, trained in (run, reference)]
    compared.losses(what, *curves, float(tolerance.first), float(tolerance.all))


def check_npu_ran(report: dict, without: frozenset[str] = frozenset()) -> None:
    """Every operator that was called ran its npu variant, except those named in ``without``."""
    assert report["device"].startswith("npu")
    assert {name for name, operator in report["operators"].items() if operator["calls"]} >= CALLED
    for name, operator in report["operators"].items():
        if name in without or not operator["calls"]:
            continue
        for function, calls in operator["calls"].items():
            assert set(calls) == {"npu"}, f"{name}.{function}: {calls}, {operator['unsupported']}"
