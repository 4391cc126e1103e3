"""``--tp-comm-overlap`` trains as without it, and sends no byte more."""

import json
from functools import partial
from pathlib import Path

import pytest

from ascend_patch.run import BUNDLED
from tests.system_tests import overlap, releases
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import PP2, TINY, TP2_SP, tiny

OVERLAP = TP2_SP | {"tp_comm_overlap": True}
DENSE = {name: False for name in TINY if name.startswith("moe_") or name == "num_experts"}
TIED = {"untie_embeddings_and_output_weights": False}
WIDE = {"hidden_size": 512, "ffn_hidden_size": 512, "num_layers": 1, "seq_length": 32, "global_batch_size": 4}
"""The Ascend operators sum over 256 products or more; a small model otherwise."""

counted = partial(overlap.counted, group="TENSOR_MODEL_PARALLEL_GROUP")
reported = partial(overlap.reported, operator="parallel_linear")

SLOW = pytest.mark.slow
CASES = [
    pytest.param(2, {}, id="moe"),
    pytest.param(
        2, DENSE | TIED | {"disable_bias_linear": False, "add_qkv_bias": True}, marks=SLOW, id="dense_bias_tied"
    ),
    pytest.param(2, {"no_gradient_accumulation_fusion": True}, marks=SLOW, id="no_fusion"),
    pytest.param(
        2,
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
        marks=SLOW,
        id="recompute",
    ),
    pytest.param(
        2, {"bf16": False, "transformer_impl": "local", "no_persist_layer_norm": True}, marks=SLOW, id="local_fp32"
    ),
    pytest.param(4, PP2, marks=SLOW, id="pp2"),
    pytest.param(4, DENSE, marks=SLOW, id="dp2"),
]


@pytest.mark.xdist_group("logits")  # the group of the server
class TestOnCpu:
    @pytest.mark.parametrize(("processes", "flags"), CASES)
    def test_losses_and_bytes_are_the_same(self, server: Server, processes: int, flags: dict) -> None:
        run, calls, sent = counted(server, processes=processes, **OVERLAP | flags)
        reference, fewer_calls, allowed = counted(server, processes=processes, **TP2_SP | flags)
        assert run.iterations == reference.iterations
        assert len(run.iterations) == TINY["train_iters"]
        assert calls > fewer_calls  # in pieces
        assert sent == allowed

    @SLOW
    def test_switched_off_by_id(self, server: Server, tmp_path: Path) -> None:
        run, calls = reported(tmp_path, disabled="tp_comm_overlap.linear", **OVERLAP)
        assert calls == {}
        assert run.iterations == counted(server, **OVERLAP)[0].iterations

    def test_user_buffers_are_not_configured(self, server: Server) -> None:
        run, *_ = counted(server, **OVERLAP, tp_comm_overlap_cfg="/nowhere.yaml", train_iters=1)
        assert run.output.count("--tp-comm-overlap-cfg /nowhere.yaml is ignored") == 1

    @pytest.mark.parametrize(
        "flags",
        [
            pytest.param({}, marks=SLOW),
            pytest.param({"sequence_parallel": True}, marks=SLOW),
            {"tensor_model_parallel_size": 2},
        ],
    )
    def test_upstream_asks_for_sequence_parallelism(self, server: Server, flags: dict) -> None:
        run = server.run(BUNDLED, tiny(tp_comm_overlap=True, **flags), 2).failed()
        assert "overlap can happen only when sequence parallelism is enabled" in run.output


@pytest.mark.slow
@pytest.mark.parametrize("release", releases.TRAINABLE)
def test_other_releases(release: str, tmp_path: Path) -> None:
    run, calls = reported(tmp_path, megatron=releases.folder(release), **OVERLAP)
    assert set(calls) == {"all_gather_linear", "linear_reduce_scatter"}
    reference, calls = reported(tmp_path, megatron=releases.folder(release), **TP2_SP)
    assert calls == {}
    assert run.iterations == reference.iterations


@pytest.mark.slow
@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("flags", [{}, DENSE], ids=["moe", "dense"])
def test_on_npu(flags: dict, tmp_path: Path) -> None:
    """In bfloat16: products of the fused operators are rounded where those of others are, not all of them alike."""
    losses, sent = {}, {}
    for layout in (TP2_SP, OVERLAP):
        folder = tmp_path / str(len(layout))
        folder.mkdir()
        run, calls = reported(folder, device="npu", **WIDE | flags | layout)
        losses[len(layout)] = {number: float(entry.loss) for number, entry in run.iterations.items()}
        sent[len(layout)] = collectives(folder)
    assert calls.keys() == {"all_gather_linear", "linear_reduce_scatter"}
    assert all(set(variants) == {"npu"} for variants in calls.values()), calls
    reference, found = losses.values()
    assert len(found) == TINY["train_iters"]
    assert found == pytest.approx(reference, rel=1e-3)
    without, with_overlap = sent.values()
    assert with_overlap == without


def collectives(folder: Path) -> dict[str, int]:
    """Bytes by collective of the first rank's tensor parallel group; empty on a real device, which does not count."""
    found: dict[str, int] = {}
    for file in folder.glob("rank0-*.json"):
        for step in json.loads(file.read_text())["steps"]:
            for row in step["collectives"]:
                if row["group"] == "TENSOR_MODEL_PARALLEL_GROUP":
                    found[row["name"]] = found.get(row["name"], 0) + row["bytes"]
    return found
