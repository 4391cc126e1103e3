"""TensorBoard folders, written as upstream writes them."""

import re

import pytest
from torch.utils.tensorboard import SummaryWriter

from ascend_patch.runs import tensorboard
from ascend_patch.runs.compare import Tolerance, compare
from ascend_patch.runs.megatron_log import History
from ascend_patch.runs.read import read
from ascend_patch.runs.run import GRAD_NORM, LOSS, RunError
from tests.unit_tests.runs.logs import LOGS


def record(folder, losses, batch=8, name="", times=None):
    """One process's events; ``times`` are those of the losses, default a quarter of a second apart."""
    with SummaryWriter(folder, filename_suffix=name) as writer:
        for argument, value in {"seq_length": 128, "world_size": 2, "bf16": True}.items():
            writer.add_text(argument, str(value), global_step=min(losses) - 1)
        for iteration, loss in losses.items():
            time = (times or {}).get(iteration, 1000 + iteration / 4)
            writer.add_scalar("learning-rate", 1e-3, iteration, walltime=time)
            writer.add_scalar("batch-size", batch, iteration, walltime=time)
            writer.add_scalar("lm loss", loss, iteration, walltime=time)
            writer.add_scalar("lm loss vs samples", loss, iteration * batch, walltime=time)
            writer.add_scalar("grad-norm", loss / 7, iteration, walltime=time)
        writer.add_scalar("lm loss validation", 3.0, max(losses))
        writer.add_scalar("lm loss validation", 2.0, max(losses))  # of the test documents
    return folder


def test_a_folder(tmp_path):
    run = read(record(tmp_path, {1: 9.0, 2: 8.0, 3: 7.0, 4: 6.0}))
    assert [(s.first, s.last, s.value) for s in run.samples[LOSS]] == [
        (1, 1, 9.0),
        (2, 2, 8.0),
        (3, 3, 7.0),
        (4, 4, 6.0),
    ]
    assert run.samples[GRAD_NORM][1].value == pytest.approx(8 / 7)
    assert [(s.last, s.value) for s in run.samples["lm loss validation"]] == [(4, 3.0)]
    assert "lm loss vs samples" not in run.samples
    assert (run.number("seq_length"), run.number("world_size"), run.processes) == (128, 2, 1)
    assert [(s.last, s.value) for s in run.seconds] == [(3, pytest.approx(0.25)), (4, pytest.approx(0.25))]


def test_a_resumed_run(tmp_path):
    record(tmp_path, {1: 9.0, 2: 8.0, 3: 7.0}, name=".a")
    record(tmp_path, {3: 7.5, 4: 6.0, 5: 5.0, 6: 4.0}, name=".b", times={3: 5000, 4: 5001, 5: 5002, 6: 5003.5})
    run = read(tmp_path)
    assert [s.value for s in run.samples[LOSS]] == [9.0, 8.0, 7.5, 6.0, 5.0, 4.0]
    assert run.processes == 2
    assert run.notes == ["recorded more than once, the later record counts: iteration 3"]
    assert [(s.last, s.value) for s in run.seconds] == [(5, pytest.approx(1.0)), (6, pytest.approx(1.5))]


def test_a_file_that_was_cut_off(tmp_path):
    record(tmp_path, {i: 10.0 - i for i in range(1, 9)})
    (file,) = tensorboard.event_files(tmp_path)
    file.write_bytes(file.read_bytes()[:-200])
    run = read(tmp_path)
    known = sorted(run.iterations())
    assert known == list(range(1, len(known) + 1)) and 1 < len(known) <= 8


def test_the_file_itself_and_a_folder_above(tmp_path):
    folder = record(tmp_path / "runs" / "tensorboard", {1: 9.0, 2: 8.0})
    (file,) = tensorboard.event_files(folder)
    assert read(file).samples == read(tmp_path).samples == read(folder).samples


def test_folders_of_several_runs(tmp_path):
    record(tmp_path / "one", {1: 9.0})
    record(tmp_path / "two", {1: 9.0})
    with pytest.raises(RunError, match="several runs. Name one of .*one, .*two"):
        read(tmp_path)


def test_a_folder_without_losses(tmp_path):
    with pytest.raises(RunError, match="without TensorBoard's event files"):
        read(tmp_path)
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("accuracy", 1.0, 1)
    with pytest.raises(RunError, match="without a series `lm loss`"):
        read(tmp_path)


def test_a_log_and_the_folder_of_the_same_run_are_equal(tmp_path):
    """The folder has each loss, the log the mean of the first two: rounding in print is all that differs."""
    whole = History.of((LOGS / "resumed.log").open())
    losses = {i: line.loss for i, line in History.of((LOGS / "cpu.log").open()).iterations.items()}
    losses[2] = 2 * losses[2] - losses[1]
    with SummaryWriter(tmp_path) as writer:
        for iteration, loss in losses.items():
            writer.add_scalar("lm loss", loss + 4e-7 * (-1) ** iteration, iteration)
    comparison = compare(read(tmp_path), read(LOGS / "resumed.log"), {"": Tolerance()})
    assert [(q.name, q.compared) for q in comparison.quantities] == [(LOSS, 16)]
    assert comparison.first_beyond is None
    assert whole.iterations[10].loss != pytest.approx(losses[10], rel=1e-3)


def test_without_the_package_the_message_says_what_to_do(tmp_path, monkeypatch):
    import sys

    record(tmp_path, {1: 9.0})
    for name in [name for name in sys.modules if name.startswith("tensorboard.backend")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    with pytest.raises(RunError, match=re.escape("pip install tensorboard")):
        read(tmp_path)
