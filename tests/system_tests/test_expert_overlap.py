"""``--overlap-dispatch-backward-with-experts-wgrad`` trains as without it, and sends no byte more."""

import json
from collections import Counter
from functools import partial
from operator import itemgetter
from pathlib import Path

import pytest

from ascend_patch.run import BUNDLED
from ascend_sim.settings import Settings
from tests.system_tests import overlap, releases
from tests.system_tests.launcher import train
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import CAPACITY, EP2, PP2, TINY, TP2_SP, tiny

OVERLAP = {"overlap_dispatch_backward_with_experts_wgrad": True}
EP4 = {"expert_model_parallel_size": 4}
EP8 = {"expert_model_parallel_size": 8, "num_experts": 16, "global_batch_size": 16}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
MODULES = {"recompute_granularity": "selective", "recompute_modules": ("moe_act", "layernorm")}
SHARED = {"moe_shared_expert_intermediate_size": 64}
LARGE = {
    "num_layers": 1,
    "hidden_size": 256,
    "seq_length": 300,
    "max_position_embeddings": 300,
    "num_experts": 16,
    "moe_router_topk": 8,
    "expert_model_parallel_size": 8,
    "moe_router_force_load_balancing": True,
}

counted = partial(overlap.counted, group="EXPERT_MODEL_PARALLEL_GROUP")
reported = partial(overlap.reported, operator="parallel_grouped_gemm")

SLOW = pytest.mark.slow
CASES = [
    pytest.param(2, EP2, id="ep2"),
    pytest.param(2, EP2 | {"num_experts": 10}, marks=SLOW, id="ep2_pieces_of_experts"),
    pytest.param(4, EP4, marks=SLOW, id="ep4_one_expert"),
    pytest.param(8, EP8, marks=SLOW, id="ep8"),
    pytest.param(4, EP2 | TP2_SP | {"expert_tensor_parallel_size": 1}, marks=SLOW, id="tp2_ep2"),
    pytest.param(4, EP2 | PP2, marks=SLOW, id="ep2_pp2"),
    pytest.param(2, EP2 | CAPACITY, marks=SLOW, id="capacity"),
    pytest.param(2, EP2 | {"moe_permute_fusion": False}, marks=SLOW, id="no_permute_fusion"),
    pytest.param(2, EP2 | {"no_gradient_accumulation_fusion": True}, marks=SLOW, id="no_fusion"),
    pytest.param(2, EP2 | FULL, marks=SLOW, id="recompute"),
    pytest.param(2, EP2 | MODULES, marks=SLOW, id="recompute_modules"),
    pytest.param(2, EP2 | SHARED, marks=SLOW, id="shared_expert"),
    pytest.param(
        2,
        EP2 | {"bf16": False, "transformer_impl": "local", "no_persist_layer_norm": True},
        marks=SLOW,
        id="local_fp32",
    ),
]


@pytest.mark.xdist_group("logits")  # the group of the server
class TestOnCpu:
    @pytest.mark.parametrize(("processes", "flags"), CASES)
    def test_losses_and_bytes_are_the_same(self, server: Server, processes: int, flags: dict) -> None:
        run, calls, sent = counted(server, processes=processes, **OVERLAP | flags)
        reference, fewer_calls, allowed = counted(server, processes=processes, **flags)
        assert run.iterations == reference.iterations
        assert len(run.iterations) == TINY["train_iters"]
        pieces = min(4, flags.get("num_experts", 4) // flags["expert_model_parallel_size"])
        assert (calls > fewer_calls) == (pieces > 1)
        assert sent == allowed

    def test_what_it_is_not_for(self, server: Server) -> None:
        (paragraph,) = server.run(BUNDLED, tiny(**OVERLAP)).failed().paragraphs
        assert "--overlap-dispatch-backward-with-experts-wgrad was given, but" in paragraph
        assert "with --expert-model-parallel-size 1 nothing is sent" in paragraph


@pytest.mark.slow
@pytest.mark.parametrize("release", [release for release in releases.TRAINABLE if release >= "0.18"])
def test_other_releases(release: str, tmp_path: Path) -> None:
    run, calls = reported(tmp_path, megatron=releases.folder(release), **EP2 | OVERLAP)
    assert set(calls) == {"all_to_all_grouped_gemm", "grouped_gemm_all_to_all"}
    reference, calls = reported(tmp_path, megatron=releases.folder(release), **EP2)
    assert calls == {}
    assert run.iterations == reference.iterations


@pytest.mark.slow
@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
@pytest.mark.timeout(1200)
def test_on_npu(tmp_path: Path) -> None:
    """Pieces, where the device has no fused operator: as many bytes, and the host waits as often.

    In float32: of plain products and grouped ones not all are rounded alike, and in bfloat16 that moves tokens.
    """
    calls = check_on_npu(tmp_path, bf16=False, **EP2)
    assert calls.keys() == {"all_to_all_grouped_gemm", "grouped_gemm_all_to_all"}


@pytest.mark.slow
@pytest.mark.usefixtures("npu_device")
@pytest.mark.timeout(2000)
@pytest.mark.parametrize(
    ("sequences", "variants"),
    [
        pytest.param(16, {"npu"}, marks=pytest.mark.npu, id="fused"),
        pytest.param(14, {"npu", "torch"}, marks=pytest.mark.simulator, id="fused_and_pieces"),
    ],
)
def test_fused_on_npus_that_have_it(sequences: int, variants: set[str], tmp_path: Path) -> None:
    """Eight NPUs of Atlas A3. Each two exchange about 300 rows of 512 bytes a sequence; the operators want 4096.

    With 14 sequences that are 4200, and in each step random routing decides whether two ranks somewhere have too few.
    In bfloat16: random routing does not depend on what was rounded. Simulated, eight ranks take 10 GiB of the host.
    """
    calls = check_on_npu(
        tmp_path,
        processes=8,
        variables={"ASCEND_SIM_SOC": "Ascend910_9392"},
        timeout=900,
        micro_batch_size=sequences,
        global_batch_size=8 * sequences,
        **LARGE,
    )
    taken = calls["all_to_all_grouped_gemm"]
    assert calls == {"all_to_all_grouped_gemm": taken, "grouped_gemm_all_to_all": taken}
    assert taken.keys() == variants
    assert sum(taken.values()) == TINY["train_iters"]
    launched = [[fused_operators(step) for step in steps] for steps in steps_of_the_device(tmp_path / "with")]
    for each in launched:
        assert each == launched[0]  # all ranks come to the same answer
        assert each.count(4) == taken["npu"]  # both layers, forward and backward
        assert each.count(0) == taken.get("torch", 0)


def check_on_npu(folder: Path, **settings: object) -> dict:
    """Train with the flag and without: losses, waits and bytes are the same. Returns the calls of the operator.

    Losses to 1e-5: products that are rounded otherwise moved none by more than 2e-6; results or gradients that are off
    by one row moved the second by 7e-3 and more.
    """
    losses, asked = {}, {}
    for name, flag in {"without": {}, "with": OVERLAP}.items():
        (folder / name).mkdir()
        run, calls = reported(folder / name, device="npu", **settings | flag)
        losses[name] = {number: float(entry.loss) for number, entry in run.iterations.items()}
        asked[name] = [[waits_and_bytes(step) for step in steps] for steps in steps_of_the_device(folder / name)]
    assert len(losses["with"]) == TINY["train_iters"]
    assert losses["with"] == pytest.approx(losses["without"], rel=1e-5)
    assert asked["with"] == asked["without"]
    assert bool(asked["with"]) == (Settings.from_environment() is not None)
    assert all(step["all_to_all_single"] > 0 for steps in asked["with"] for step in steps)
    return calls


def steps_of_the_device(folder: Path) -> list[list[dict]]:
    """What each rank counted in each step of the training; empty on a real device."""
    reports = sorted((json.loads(file.read_text()) for file in folder.glob("rank*-*.json")), key=itemgetter("rank"))
    return [[step for step in report["steps"] if step["kind"] == "step"] for report in reports]


def waits_and_bytes(step: dict) -> Counter:
    """Waits of the host, and bytes between experts."""
    found: Counter = Counter()
    for row in step["syncs"]:
        found[f"waits in {row['name']}"] += row["count"]
    for row in step["collectives"]:
        if "EXPERT_MODEL" in row["group"]:
            found[row["name"]] += row["bytes"]
    return found


def fused_operators(step: dict) -> int:
    """Calls of ``npu_alltoallv_gmm`` and ``npu_gmm_alltoallv``."""
    return sum(row["count"] for row in step["launches"] if "alltoallv" in row["name"])


@pytest.mark.slow
def test_switched_off_by_id(tmp_path: Path) -> None:
    run, calls = reported(tmp_path, disabled="moe.expert_overlap", **EP2)
    assert calls == {}
    assert run.iterations == reported(tmp_path, **EP2 | OVERLAP)[0].iterations
    refused = train(tiny(**EP2 | OVERLAP), processes=2, variables={"ASCEND_PATCH_DISABLE": "moe.expert_overlap"})
    assert "TE version >= 2.3.0 is required for overlap_dispatch_backward_with_experts_wgrad" in refused.output
