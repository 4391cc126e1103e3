"""Which script `python -m ascend_patch.run` runs."""

from pathlib import Path

import pytest

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.run import BUNDLED, resolve


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", [[], ["--num-layers", "2"]])
def test_no_script_is_the_bundled_entry(here: Path, arguments: list[str]) -> None:
    assert BUNDLED.is_file()
    assert resolve(arguments) == (BUNDLED, arguments)


def test_script_that_is_there(here: Path) -> None:
    (here / "pretrain_gpt.py").touch()
    (here / "mine.py").touch()
    assert resolve(["pretrain_gpt.py", "--bf16"]) == (Path("pretrain_gpt.py"), ["--bf16"])
    assert resolve([str(here / "mine.py")]) == (here / "mine.py", [])


def test_bundled_entry_stands_for_pretrain_gpt(here: Path) -> None:
    """The wheel has none: a command that names it without a folder still works."""
    assert resolve(["pretrain_gpt.py", "--bf16"]) == (BUNDLED, ["--bf16"])


@pytest.mark.parametrize("script", ["mine.py", "checkout/pretrain_gpt.py"])
def test_script_that_is_not_there(here: Path, script: str) -> None:
    with pytest.raises(AscendPatchError, match=f"There is no script {script}"):
        resolve([script])
