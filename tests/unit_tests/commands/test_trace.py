"""`ascend-patch trace`, on traces of made-up runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ascend_patch.cli import main
from ascend_patch.trace import store
from ascend_patch.trace.store import FORWARD
from tests.unit_tests.trace.runs import Computation, layout

NAME = "decoder.layers.1.linear_proj"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two steps of two ranks; in step 2 of the second trace, one output is too large."""
    for folder in ("a", "b"):
        for step in (1, 2):
            computation = Computation(9)
            if (folder, step) == ("b", 2):
                computation.outputs[FORWARD, NAME][3] *= 2
            for rank in computation.trace(layout(data=2)):
                store.write(tmp_path / folder, replace(rank, step=step, run={"upstream": "0.19.2"}))
    return tmp_path / "a", tmp_path / "b"


def test_what_is_in_a_trace(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(folders[0])]) == 0
    shown = capsys.readouterr().out
    assert "2     2      DP2, 4 micro-batches of 1  cpu" in shown
    assert "upstream: 0.19.2" in shown
    assert main(["trace", str(folders[0]), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [step["step"] for step in said["steps"]] == [1, 2]
    assert said["unfinished"] == []
    store.file(folders[0], 1, 1).unlink()
    assert main(["trace", str(folders[0])]) == 0
    assert "not recorded by every rank, and left out: step 1" in capsys.readouterr().out


def test_digests_by_name(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trace", str(folders[0]), "--name", "*.1.linear_pro?", "--step", "2"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {(one["name"], one["step"]) for one in said} == {(NAME, 2)}
    assert len(said) == 2 * 2 * 4  # directions, ranks, micro-batches
    assert main(words) == 0
    assert capsys.readouterr().out.count(NAME) == len(said)
    assert main(["trace", str(folders[0]), "--name", "nothing"]) == 2
    assert "matches nothing. Use * and ?" in capsys.readouterr().err


def test_diff(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = map(str, folders)
    assert main(["trace", "diff", a, a]) == 0
    assert "No difference in" in capsys.readouterr().out
    assert main(["trace", "diff", a, b]) == 1
    shown = capsys.readouterr().out
    assert f"First difference: step 2, output of {NAME}, rank 1, sample 3 of the batch (" in shown
    assert main(["trace", "diff", a, b, "--json"]) == 1
    first = json.loads(capsys.readouterr().out)["first"]
    assert (first["step"], first["direction"], first["name"], first["rank"]) == (2, "forward", NAME, 1)
    assert (first["first_sample"], first["samples"]) == (3, 1)
    assert first["amounts"]["norm"] == pytest.approx(0.5)
    assert main(["trace", "diff", a, b, "--tolerance", "0.6"]) == 0
    assert main(["trace", "diff", a, b, "--step", "1"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diff", "a"], "takes one folder, or the word diff and two; it got diff a"),
        (["a", "b"], "takes one folder"),
        (["a", "--tolerance", "1"], "--tolerance is for `ascend-patch trace diff A B`"),
        (["a", "--step", "5"], "There is no step 5. Steps recorded by every rank: a: 1, 2"),
        (["nowhere"], "nowhere holds no whole step of a trace"),
    ],
)
def test_what_cannot_be_done(folders, words, message, capsys, monkeypatch) -> None:
    monkeypatch.chdir(folders[0].parent)
    assert main(["trace", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf", "much"])
def test_tolerances(tolerance: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["trace", "diff", "a", "b", f"--tolerance={tolerance}"])
    assert "is not a number from 0 on" in capsys.readouterr().err


def test_neither_torch_nor_megatron_is_imported() -> None:
    code = "import sys, ascend_patch.commands.trace; print({'torch', 'megatron', 'numpy'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
