"""tools/checkpoint/adapter.py: its commands, what it says, how it refuses."""

from pathlib import Path

import pytest
import torch

from tests.unit_tests.checkpoint import small_models
from tests.unit_tests.checkpoint.small_models import MIXTRAL
from tests.unit_tests.checkpoint.test_adapters import check_same, made
from tools.checkpoint.adapter import main


def test_the_three_commands(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from ascend_patch.checkpoint import adapters

    model, given = small_models.save(tmp_path / "model", MIXTRAL), made(MIXTRAL)
    adapters.write(given, tmp_path / "megatron")

    def run(*words: object) -> None:
        assert main(list(map(str, words))) == 0

    run("export", "--load-dir", tmp_path / "megatron", "--save-dir", tmp_path / "peft", "--model", "Mixtral")
    run("import", "--load-dir", tmp_path / "peft", "--model", model, "--save-dir", tmp_path / "back")
    check_same(adapters.read(tmp_path / "back"), given)
    shown = capsys.readouterr().err
    assert (
        "--lora-r 3 --lora-alpha 6 --lora-target-modules linear_qkv linear_proj router linear_fc1 linear_fc2" in shown
    )
    for source in ("megatron", "peft"):
        run("merge", "--load-dir", tmp_path / source, "--base", model, "--save-dir", tmp_path / f"{source}-merged")
    one, other = (small_models.weights(tmp_path / f"{source}-merged") for source in ("megatron", "peft"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    there = ["--load-dir", str(tmp_path / "none"), "--save-dir", str(tmp_path / "out")]
    assert main(["export", *there]) == 1
    assert capsys.readouterr().err.startswith(f"adapter.py: {tmp_path / 'none'} is no folder.")
    assert main(["import", *there, "--model", str(tmp_path)]) == 1
    assert "config.json: No such file or directory." in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["merge", *there])
