"""Which steps are recorded, and that nothing happens to the others."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from ascend_patch.engine.patch import Environment
from ascend_patch.features import trace
from ascend_patch.trace import job, store


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are recorded; the iteration is what the "step" that is wrapped says."""
    steps: list[int] = []

    @contextmanager
    def record(folder: Path, step: int, args: object, model: object, optimizer: object):
        steps.append(step)
        yield

    monkeypatch.setattr(job, "recorded", record)
    return steps


def run(monkeypatch: pytest.MonkeyPatch, iterations: range) -> None:
    """Upstream counts the iterations that are done."""
    arguments = SimpleNamespace(curr_iteration=0)
    monkeypatch.setattr("megatron.training.get_args", lambda: arguments)
    train_step = trace.train_step(lambda *args, **kwargs: (args, kwargs))
    for arguments.curr_iteration in iterations:
        assert train_step(1, 2, 3, 4, 5, iteration=6) == ((1, 2, 3, 4, 5), {"iteration": 6})


def test_which_steps(recorded: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASCEND_PATCH_TRACE", f"{tmp_path}@2,4-5,9")
    run(monkeypatch, range(0, 7))
    assert recorded == [2, 4, 5]


def test_a_resumed_run_discards_what_it_will_record(monkeypatch, recorded: list[int], tmp_path: Path) -> None:
    files = {step: store.file(tmp_path, step, 0) for step in (2, 4, 7)}
    for file in files.values():
        file.parent.mkdir()
        file.touch()
    monkeypatch.setenv("ASCEND_PATCH_TRACE", f"{tmp_path}@2,4")
    run(monkeypatch, range(2, 3))
    assert [step for step, file in files.items() if file.exists()] == [2, 7]


def test_without_the_variable_nothing_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Environment("cpu", "0.19.2")
    monkeypatch.delenv("ASCEND_PATCH_TRACE", raising=False)
    assert trace.where_traced(here) == "ASCEND_PATCH_TRACE is not set"
    monkeypatch.setenv("ASCEND_PATCH_TRACE", "trace")
    assert trace.where_traced(here) is None
