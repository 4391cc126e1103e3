"""Each patch switched off by its id: float32 losses with and without it agree."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest

from ascend_patch.engine.patch import Environment, Patch
from ascend_patch.features import PATCHES
from tests.system_tests import releases
from tests.system_tests.launcher import Run, train
from tests.system_tests.mixtral import CAPACITY, tiny

pytestmark = pytest.mark.xdist_group("patches")  # one worker: they share runs

FIRST, LATER = 1e-6, 1e-4
"""Largest relative difference of the losses of the first iteration, and of any of the first ten."""

ITERATIONS = 10


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        ids: patches switched off together.
        both: flags of both runs, where upstream's own code needs them.
        without: flags of the run without the patches, where the patch is what makes the flag work.
        trained: both runs start from a checkpoint that the patches' side has written, not from initial weights.
        why: reason for the three.
    """

    ids: tuple[str, ...]
    both: dict = field(default_factory=dict)
    without: dict = field(default_factory=dict)
    trained: bool = False
    why: str = ""


ROWS = (
    Row(
        ("spec.transformer_engine",),
        without={"transformer_impl": "local"},
        why="the default transformer_engine cannot be built without the patch",
    ),
    Row(("attention.core", "activation.swiglu", "loss.cross_entropy")),
    Row(
        ("norm.torch_norm",),
        both={"transformer_impl": "local", "no_persist_layer_norm": True},
        why="upstream's norm refuses persist_layer_norm; in the local implementation every norm is one of its own",
    ),
    Row(("rope.fused",), without={"no_rope_fusion": True}, why="the fusion needs the patch"),
    Row(("moe.router_topk", "moe.router_aux_loss", "moe.split_sizes")),
    Row(("moe.permute",), without={"moe_permute_fusion": False}, why="the fusion needs the patch"),
    Row(("moe.allgather_probs",), both={"moe_token_dispatcher_type": "allgather"}, why="only that dispatcher has it"),
    Row(("moe.grouped_gemm",), trained=True, why="upstream draws the initial weights expert by expert"),
    Row(
        ("optimizer.gradient_accumulation_fusion",),
        without={"no_gradient_accumulation_fusion": True},
        why="the fusion needs the patch",
    ),
    Row(("optimizer.adam", "optimizer.multi_tensor_scale", "optimizer.multi_tensor_norm", "optimizer.copy_to_model")),
    Row(("optimizer.loss_scale", "training.statistics", "training.validation")),
    Row(
        (
            "arguments.cpu",
            "arguments.transformer_engine",
            "context_parallel.arguments",
            "determinism.arguments",
            "inputs.checkpoint",
            "inputs.dataset",
            "inputs.fp8",
            "inputs.split",
            "inputs.tokenizer",
            "inputs.tracker",
            "process_groups.hosts",
            "instruction.flag",
            "instruction.dataset",
            "lora.flags",
            "lora.model",
            "lora.checkpoint",
            "tp_comm_overlap.linear",
            "tp_comm_overlap.initialize",
            "moe.expert_overlap",
        ),
        why=(
            "these refuse or explain, or act where a flag asks for them, whose tests have it (test_instruction.py, "
            "test_lora.py, test_tp_comm_overlap.py, test_expert_overlap.py): one run without all of them"
        ),
    ),
    Row(
        ("recompute.without_output",),
        both={"recompute_granularity": "selective", "recompute_modules": ("moe_act", "layernorm")},
        without={"recompute_granularity": False, "recompute_modules": False},
        why="these two modules, which the patch is for, cannot be recomputed without it",
    ),
)

#: Patches of which the wheel cannot run the other side; where they are tested instead.
ELSEWHERE = {
    "data.compile_helpers": "tests/unit_tests/features/test_platform.py: the wheel has no Makefile to run instead",
    "inference.attention": "tests/system_tests/test_generation.py: the engine needs FlashAttention without it",
    "inference.cache": "tests/system_tests/test_generation.py: upstream's kernel refuses tensors outside of cuda",
    "context_parallel.packed_batches": "for upstream's script alone, which the wheel lacks: `make test-checkouts`",
    "instruction.packed_batches": "for the script of 0.17 alone: `make test-checkouts` with such a checkout",
    "moe.router_gemm": "for 0.16 alone, whose wheel has no training loop: `make test-checkouts` with such a checkout",
    "trace.train_step": "tests/system_tests/test_trace.py: for traced runs alone",
    "restarts.store": "tests/system_tests/test_crash.py: without it a restarted job hangs",
    "process_groups.hccl_options": "tests/unit_tests/features/test_process_groups.py: for npu alone",
}


def test_every_patch_has_a_row() -> None:
    rows = [patch_id for row in ROWS for patch_id in row.ids] + list(ELSEWHERE)
    assert sorted(rows) == sorted({patch.id for patch in PATCHES})


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[int, float]]:
    """losses(disabled, trained, **flags): number -> loss of ten float32 iterations."""
    folder = tmp_path_factory.mktemp("patches")
    start = {"save": folder / "start", "save_interval": ITERATIONS}
    report = folder / "report.json"

    @cache
    def result(disabled: tuple[str, ...], trained: bool, flags: tuple) -> dict[int, float]:
        if trained:
            result((), False, ())  # writes the checkpoint
            flags += (("load", folder / "start"), ("finetune", True))
        elif not (disabled or flags):
            flags = tuple(start.items())
        run = train(
            tiny(bf16=False, train_iters=ITERATIONS, **dict(flags)),
            variables={"ASCEND_PATCH_DISABLE": ",".join(disabled), "ASCEND_PATCH_REPORT": str(report)},
        ).succeeded()
        check_report(report, disabled, run)
        assert sorted(run.iterations) == list(range(1, ITERATIONS + 1)), run.tail()
        return {number: float(loss) for number, loss in run.losses.items()}

    return lambda disabled, trained, **flags: result(disabled, trained, tuple(sorted(flags.items())))


def check_report(report: Path, disabled: tuple[str, ...], run: Run) -> None:
    """The patches named were left out, and every other one that this release needs was applied."""
    status = {}
    for row in json.loads(report.read_text())["patches"]:
        status.setdefault(row["id"], set()).add((row["status"], row["detail"]))
    assert f"Megatron-LM {releases.INSTALLED}" in run.output
    for patch_id, outcomes in status.items():
        if patch_id in disabled:
            assert outcomes == {("skipped", "disabled by id")}
        elif any(patch.id == patch_id and applies_here(patch) for patch in PATCHES):
            assert ("applied", "") in outcomes, (patch_id, outcomes)


def applies_here(patch: Patch) -> bool:
    """To the installed release, on the cpu device."""
    here = Environment("cpu", releases.INSTALLED)
    return patch.supports(here.upstream) and patch.when(here) is None


ALONE = [replace(row, ids=(one,)) for row in ROWS if len(row.ids) > 1 and not row.why for one in row.ids]


@pytest.mark.parametrize(
    "row",
    [*ROWS, *(pytest.param(row, marks=pytest.mark.slow) for row in ALONE)],
    ids=lambda row: f"{row.ids[0]} and {len(row.ids) - 1} more" if len(row.ids) > 1 else row.ids[0],
)
def test_losses_agree(row: Row, losses: Callable[..., dict[int, float]]) -> None:
    check(losses((), row.trained, **row.both), losses(row.ids, row.trained, **{**row.both, **row.without}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [{}, {"moe_token_drop_policy": "position"}, {"moe_pad_expert_input_to_capacity": True}],
    ids=["drop", "drop_by_position", "pad"],
)
def test_capacity_agrees(mode: dict, losses: Callable[..., dict[int, float]]) -> None:
    """With upstream's own routing and dispatch, where experts have a capacity."""
    routing = ("moe.permute", "moe.router_topk", "moe.router_aux_loss", "moe.split_sizes")
    mode = mode | CAPACITY
    check(losses((), False, **mode), losses(routing, False, **mode, moe_permute_fusion=False))


def check(with_patch: dict[int, float], without: dict[int, float]) -> None:
    """The losses agree, and the model learns."""
    difference = {number: abs(without[number] / loss - 1) for number, loss in with_patch.items()}
    assert difference[1] <= FIRST, difference
    assert max(difference.values()) <= LATER, difference
    assert with_patch[ITERATIONS] < with_patch[1] - 0.1
