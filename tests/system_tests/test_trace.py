"""Traces of real training: equal runs do not differ, whatever the layout, and a planted fault is found where it is.

All float32, from one checkpoint: the initial weights depend on the layout.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from ascend_patch.cli import main
from ascend_patch.run import BUNDLED
from tests.system_tests import releases, traced
from tests.system_tests.launcher import Run, train
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import EP2, ONE, PP2, TP2_PP2_EP2, TP2_SP, tiny

FLAGS = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "seq_length": 32,
    "max_position_embeddings": 32,
    "bf16": False,
    "train_iters": 2,
}
VPP2 = PP2 | {"num_layers_per_virtual_pipeline_stage": 1}
RECOMPUTED = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
EXPERTS = f"decoder.layers.{traced.LAYER}.mlp.experts"

Tracer = Callable[..., tuple[Path, Run]]


@pytest.fixture(scope="module", params=releases.parameters(slow_before=releases.INSTALLED))
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracer]:
    """trace(processes, fault, again, **flags): a trace of a run from the one checkpoint, and the run."""
    folder = tmp_path_factory.mktemp("trace")
    # Whether there is a trace at all is decided when Megatron is imported.
    with Server(folder, releases.folder(request.param), {"ASCEND_PATCH_TRACE": str(folder / "off")}) as server:
        save = {"save": folder / "start", "save_interval": 1, "train_iters": 1, "no_save_optim": True}
        server.run(BUNDLED, tiny(**FLAGS | save)).succeeded()
        start = FLAGS | {"load": folder / "start", "finetune": True, "no_load_rng": True}

        @cache
        def run(processes: int, fault: str, steps: str, again: int, flags: tuple) -> tuple[Path, Run]:
            place = folder / f"trace{run.cache_info().misses}"
            words = [f"{place}@{steps}", fault, *tiny(**start | dict(flags))]
            return place, server.run(Path(traced.__file__), words, processes).succeeded()

        def traced_run(processes=1, fault="none", steps="1-2", again=0, **flags):
            return run(processes, fault, steps, again, tuple(flags.items()))

        yield traced_run


def diff(capsys: pytest.CaptureFixture[str], a: Path, b: Path, *options: str) -> dict:
    """What `ascend-patch trace diff` says."""
    capsys.readouterr()
    code = main(["trace", "diff", str(a), str(b), *options, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == int(not said["same"])
    return said


def test_equal_runs(trace: Tracer, capsys: pytest.CaptureFixture[str]) -> None:
    (a, traced_run), (b, _) = trace(), trace(again=1)
    said = diff(capsys, a, b)
    assert said["same"]
    assert [step["tolerance"] for step in said["steps"]] == [None, None]  # bit by bit
    assert [step["largest"] for step in said["steps"]] == [0, 0]
    layer = f"decoder.layers.{FLAGS['num_layers'] - 1}"
    assert main(["trace", str(a), "--name", f"{layer}.mlp.router"]) == 0
    assert f"forward    {layer}.mlp.router" in capsys.readouterr().out
    assert sum(file.stat().st_size for file in a.rglob("*.gz")) < 200_000
    untraced, run = trace(steps="7")
    assert not untraced.exists()
    assert run.iterations == traced_run.iterations  # tracing changes no digit


LAYOUTS = [
    pytest.param(2, EP2, id="ep2"),
    pytest.param(2, TP2_SP, id="tp2"),
    pytest.param(2, VPP2, id="vpp2", marks=pytest.mark.slow),
    pytest.param(4, TP2_SP | EP2 | {"expert_tensor_parallel_size": 1}, id="tp2_ep2_etp1", marks=pytest.mark.slow),
    pytest.param(8, TP2_PP2_EP2, id="tp2_pp2_ep2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("processes", "layout"), LAYOUTS)
def test_layouts_do_not_differ(trace: Tracer, capsys: pytest.CaptureFixture[str], processes: int, layout: dict) -> None:
    said = diff(capsys, trace()[0], trace(processes, **layout)[0])
    assert said["same"], said["first"]
    for step in said["steps"]:
        assert step["compared"] > 300
        assert step["only_a"] == step["only_b"] == []


@pytest.mark.slow
def test_recomputed_activations_are_recorded_once(trace: Tracer, capsys: pytest.CaptureFixture[str]) -> None:
    plain, recomputed = trace(2, **PP2)[0], trace(2, **PP2 | RECOMPUTED)[0]
    said = diff(capsys, plain, recomputed)
    assert said["same"], said["first"]
    assert said["steps"][0]["compared"] == diff(capsys, plain, plain)["steps"][0]["compared"]


@pytest.mark.parametrize(("processes", "layout"), [(1, ONE), (2, EP2)], ids=["one", "ep2"])
def test_a_scaled_expert(trace: Tracer, capsys: pytest.CaptureFixture[str], processes: int, layout: dict) -> None:
    """Found in the same layout, and from another one."""
    faulty = trace(processes, "scaled_expert", **layout)[0]
    rank = traced.EXPERT // 2 if processes == 2 else 0
    for sound in (trace()[0], trace(processes, **layout)[0]):
        first = diff(capsys, sound, faulty)["first"]
        assert (first["step"], first["direction"]) == (1, "forward")
        assert first["name"] == f"{EXPERTS}.linear_fc1[{traced.EXPERT}]"
        assert first["first_sample"] == 0
        assert first["ranks_b"] == [rank]
        assert first["amounts"]["norm"] == pytest.approx(1e-3, rel=1e-2)


def test_a_lost_token(trace: Tracer, capsys: pytest.CaptureFixture[str]) -> None:
    """In one micro-batch: samples 2 and 3. Its experts see it first."""
    first = diff(capsys, trace()[0], trace(fault="lost_token")[0])["first"]
    assert (first["step"], first["direction"], first["first_sample"]) == (1, "forward", 2 * traced.MICRO_BATCH)
    assert first["name"].startswith(f"{EXPERTS}.linear_fc1[")
    assert first["ranks_a"] == first["ranks_b"] == [0]


def test_swapped_ranks(trace: Tracer, capsys: pytest.CaptureFixture[str]) -> None:
    """The sum over both ranks is as it was: what each expert computes is not."""
    faulty = trace(2, "swapped_ranks", **EP2)[0]
    for sound in (trace()[0], trace(2, **EP2)[0]):
        first = diff(capsys, sound, faulty)["first"]
        assert (first["step"], first["direction"]) == (1, "forward")
        assert (first["name"], first["ranks_b"]) == (f"{EXPERTS}.linear_fc1[0]", [0])


def test_what_differs_after_a_step(trace: Tracer, capsys: pytest.CaptureFixture[str]) -> None:
    """Another learning rate: the first step is the same to the last gradient."""
    said = diff(capsys, trace()[0], trace(lr=2e-3)[0])
    assert said["steps"][0]["differences"] == {"forward": 0, "backward": 0, "gradient": 0}
    first = said["first"]
    assert (first["step"], first["direction"], first["name"]) == (2, "forward", "embedding.word_embeddings")


@pytest.mark.slow
@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
@pytest.mark.timeout(600)
def test_devices_do_not_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = {"save": tmp_path / "start", "save_interval": 1, "train_iters": 1, "no_save_optim": True}
    train(tiny(**FLAGS | start), variables={"ASCEND_PATCH_DEVICE": "cpu"}).succeeded()
    for device in ("cpu", "npu"):
        train(
            tiny(**FLAGS | {"load": tmp_path / "start", "finetune": True, "no_load_rng": True}),
            variables={"ASCEND_PATCH_DEVICE": device, "ASCEND_PATCH_TRACE": f"{tmp_path / device}@1-2"},
        ).succeeded()
    said = diff(capsys, tmp_path / "cpu", tmp_path / "npu")
    assert said["same"], said["first"]
    assert [step["only_a"] + step["only_b"] for step in said["steps"]] == [[], []]
    assert 0 < said["steps"][0]["largest"] < 1e-5
