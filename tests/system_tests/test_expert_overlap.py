"""``--overlap-dispatch-backward-with-experts-wgrad`` trains as without it, and sends no byte more."""

import json
from functools import partial
from pathlib import Path

import pytest

from ascend_patch.run import BUNDLED
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
    losses, asked = {}, {}
    for name, flags in {"without": EP2, "with": EP2 | OVERLAP}.items():
        folder = tmp_path / name
        folder.mkdir()
        run, calls = reported(folder, device="npu", bf16=False, **flags)
        losses[name] = {number: float(entry.loss) for number, entry in run.iterations.items()}
        asked[name] = of_the_device(folder)
    assert len(losses["with"]) == TINY["train_iters"]
    assert losses["with"] == pytest.approx(losses["without"], rel=1e-5)
    assert asked["with"] == asked["without"]
    assert calls.keys() == {"all_to_all_grouped_gemm", "grouped_gemm_all_to_all"}


def of_the_device(folder: Path) -> dict[str, int]:
    """In the first rank's last step, waits of the host and bytes between experts; empty on a real device."""
    found: dict[str, int] = {}
    for file in folder.glob("rank0-*.json"):
        step = json.loads(file.read_text())["steps"][-1]
        rows = [(f"waits in {row['name']}", row["count"]) for row in step["syncs"]]
        rows += [(row["name"], row["bytes"]) for row in step["collectives"] if "EXPERT_MODEL" in row["group"]]
        for name, count in rows:
            found[name] = found.get(name, 0) + count
    return found


@pytest.mark.slow
def test_switched_off_by_id(tmp_path: Path) -> None:
    run, calls = reported(tmp_path, disabled="moe.expert_overlap", **EP2)
    assert calls == {}
    assert run.iterations == reported(tmp_path, **EP2 | OVERLAP)[0].iterations
    refused = train(tiny(**EP2 | OVERLAP), processes=2, variables={"ASCEND_PATCH_DISABLE": "moe.expert_overlap"})
    assert "TE version >= 2.3.0 is required for overlap_dispatch_backward_with_experts_wgrad" in refused.output
