"""The picture: what it shows, and that nothing half-written is left."""

import math
from pathlib import Path

import pytest

from ascend_patch.runs.compare import Tolerance, compare
from ascend_patch.runs.figure import draw
from ascend_patch.runs.read import read
from ascend_patch.runs.run import LOSS, Run, RunError, Sample
from tests.unit_tests.runs.logs import LOGS

PNG = b"\x89PNG\r\n\x1a\n"


def run_of(losses):
    return Run(Path("run"), {LOSS: [Sample(i, i, value) for i, value in losses.items()]})


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every figure that is drawn."""
    import matplotlib.pyplot as plt

    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    return kept


def test_both_losses_their_difference_and_both_norms(tmp_path, drawn):
    comparison = compare(read(LOGS / "cpu.log"), read(LOGS / "npu.log"))
    draw(comparison, ("GPU", "NPU"), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    loss, difference, norm = drawn[0].axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["GPU", "NPU"]
    assert [len(line.get_xdata()) for line in loss.lines] == [16, 16]
    assert list(loss.lines[0].get_ydata())[1] == pytest.approx(6.490267)  # not the mean 6.543279 that was printed
    assert max(abs(difference.lines[0].get_ydata())) == pytest.approx(0.194, abs=0.002)
    assert [len(line.get_xdata()) for line in norm.lines] == [16, 16]
    assert loss.get_title(loc="left") == "Within tolerance"


def test_the_first_step_beyond_is_marked_in_every_part(tmp_path, drawn):
    comparison = compare(read(LOGS / "cpu.log"), read(LOGS / "npu.log"), {"": Tolerance(0.001), "grad norm": None})
    draw(comparison, ("GPU", "NPU"), tmp_path / "figure.png")
    step = comparison.first_beyond.first_beyond.a.last
    assert drawn[0].axes[0].get_title(loc="left") == f"Beyond tolerance first in iteration {step}: lm loss"
    for axes in drawn[0].axes:
        assert [step, step] in [list(line.get_xdata()) for line in axes.lines]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({1: 5.0}, {1: 5.0}),
        ({1: 5.0, 2: math.nan}, {1: 5.0, 2: 4.0}),
        ({1: math.nan, 2: math.nan}, {1: math.nan, 2: math.nan}),
        ({1: 0.0, 2: 1.0}, {1: 1.0, 2: math.inf}),
    ],
)
def test_runs_that_are_hard_to_draw(tmp_path, a, b):
    draw(compare(run_of(a), run_of(b)), ("A", "B"), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("name", ["missing/figure.png", "figure.nonsense"])
def test_a_place_that_cannot_be_written(tmp_path, name):
    comparison = compare(run_of({1: 5.0}), run_of({1: 5.0}))
    with pytest.raises(RunError, match="cannot be written.*Name a .png file in an existing folder"):
        draw(comparison, ("A", "B"), tmp_path / name)
    assert not list(tmp_path.iterdir())
