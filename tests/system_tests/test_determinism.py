"""Deterministic runs repeat themselves bit by bit: twice the same, and resumed as if never stopped.

The quick selection trains two processes with expert parallelism; the slow one eight, in TP2 PP2 EP2. Twice the same is
twice from the start; where only the numbers matter, a server forks the ranks.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_patch.run import BUNDLED
from tests.system_tests import bits, releases
from tests.system_tests.launcher import Run, train
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import EP2, TP2_PP2_EP2, tiny, title
from tests.system_tests.report import Compared

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("logits")]  # that of the server

SAVED, LAST = 2, 4
DROPOUT = {"attention_dropout": 0.1, "hidden_dropout": 0.1}
LAYOUTS = [
    pytest.param(2, EP2, id="ep2"),
    pytest.param(8, TP2_PP2_EP2, id="tp2_pp2_ep2", marks=pytest.mark.slow),
]


def flags(folder: Path, layout: dict, load: Path | None = None, **changes: object) -> list[str]:
    """The arguments of a deterministic run that leaves checkpoints and events in ``folder``."""
    own = {"deterministic_mode": True, "save": folder, "save_interval": SAVED, "train_iters": LAST}
    events = {"tensorboard_dir": folder / "events", "tensorboard_log_interval": 1, "load": load or False}
    return tiny(**{**layout, **DROPOUT, **own, **events, **changes})


def run(folder: Path, processes: int, layout: dict, start: dict | None = None, **changes: object) -> Run:
    """Such a run, in processes of its own."""
    return train(flags(folder, layout, **changes), processes=processes, **(start or {})).succeeded()


@pytest.fixture
def forked(server: Server) -> Callable[..., Run]:
    """The same in ranks that the server forks."""

    def forked(folder: Path, processes: int, layout: dict, **changes: object) -> Run:
        return server.run(BUNDLED, flags(folder, layout, **changes), processes=processes).succeeded()

    return forked


@pytest.mark.parametrize(("processes", "layout"), LAYOUTS)
def test_twice_the_same(tmp_path: Path, compared: Compared, processes: int, layout: dict) -> None:
    for name in ("one", "other"):
        run(tmp_path / name, processes, layout)
    compared.differing(
        f"Twice the same, {title(layout)}, dropout",
        "tensors and scalars that differ",
        bits.differing(tmp_path / "one", tmp_path / "other", range(1, LAST + 1)),
    )
    (manifest,) = (tmp_path / "one" / "manifests").iterdir()
    said = json.loads(manifest.read_text())
    assert said["arguments"]["hidden_dropout"] == 0.1
    assert said["environment"]["HCCL_DETERMINISTIC"] == "true"
    assert "determinism.arguments" in said["patches"]["applied"]


def test_another_seed_is_noticed(tmp_path: Path, forked: Callable[..., Run]) -> None:
    """The comparison can fail: one number of the command line differs."""
    for seed in (1, 2):
        forked(tmp_path / str(seed), 1, {}, seed=seed, train_iters=SAVED)
    assert bits.differing_tensors(tmp_path / "1", tmp_path / "2", SAVED)
    assert bits.differing_scalars(tmp_path / "1", tmp_path / "2", range(SAVED, SAVED + 1))


@pytest.mark.parametrize("checkpoint_format", ["torch_dist", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("processes", "layout"), LAYOUTS)
def test_resumed_as_if_never_stopped(
    tmp_path: Path,
    compared: Compared,
    forked: Callable[..., Run],
    processes: int,
    layout: dict,
    checkpoint_format: str,
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    forked(whole, processes, layout, ckpt_format=checkpoint_format)
    # The same schedule, left after SAVED iterations.
    forked(parts, processes, layout, ckpt_format=checkpoint_format, exit_interval=SAVED)
    forked(parts, processes, layout, ckpt_format=checkpoint_format, load=parts)
    compared.differing(
        f"Resumed and never stopped, {title(layout)}, dropout, {checkpoint_format}",
        "tensors and scalars that differ",
        bits.differing(whole, parts, range(SAVED + 1, LAST + 1)),
    )


@pytest.mark.slow
@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
@pytest.mark.timeout(900)
def test_on_the_npu(tmp_path: Path, compared: Compared) -> None:
    """Twice the same, and resumed."""
    start = {"variables": {"ASCEND_PATCH_DEVICE": "npu"}, "timeout": 400}
    whole, again, parts = (tmp_path / name for name in ("whole", "again", "parts"))
    for folder in (whole, again):
        run(folder, 2, EP2, start)
    run(parts, 2, EP2, start, exit_interval=SAVED)
    run(parts, 2, EP2, start, load=parts)
    what = "tensors and scalars that differ"
    compared.differing("NPU: twice the same, EP2, dropout", what, bits.differing(whole, again, range(1, LAST + 1)))
    compared.differing(
        "NPU: resumed and never stopped, EP2, dropout", what, bits.differing(whole, parts, range(SAVED + 1, LAST + 1))
    )


@pytest.mark.slow
@pytest.mark.parametrize("release", [releases.TRAINABLE[0]])
def test_the_variable_does_what_the_flag_does(tmp_path: Path, release: str) -> None:
    """On the oldest release too, whose own mode refuses --use-flash-attn."""
    start = {"megatron": releases.folder(release)}
    run(tmp_path / "flag", 1, {}, start=start)
    run(
        tmp_path / "variable",
        1,
        {},
        start=start | {"variables": {"ASCEND_PATCH_DETERMINISTIC": "1"}},
        deterministic_mode=False,
    )
    assert bits.differing(tmp_path / "flag", tmp_path / "variable", range(1, LAST + 1)) == []
