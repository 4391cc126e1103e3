"""A conversion that is killed leaves nothing that loads, and continues to the same result when it is run again."""

import sys
from pathlib import Path

import pytest

from ascend_patch.checkpoint import huggingface, megatron
from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.checkpoint.errors import CheckpointError
from tests.system_tests import hugging_face
from tests.system_tests.checkpoints import check_identical
from tests.system_tests.launcher import environment, run

KILLS = 4


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for a conversion to take a while."""
    shape = hugging_face.MIXTRAL | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}
    return hugging_face.save(hugging_face.random_model(**shape), tmp_path_factory.mktemp("original"))


def convert_and_kill(load: Path, save: Path, *arguments: str) -> list[Path]:
    """Returns what each kill left."""
    command = [sys.executable, "-m", "tests.system_tests.killed_conversions", str(KILLS), *arguments]
    folders = ["--load-dir", str(load), "--save-dir", str(save), "--workers", "2"]
    run([*command, *folders], environment(), timeout=200).succeeded()
    return sorted(save.with_name(f"{save.name}.killed").glob("*"))


@pytest.mark.parametrize("ckpt_format", ["torch", "torch_dist"])
def test_to_megatron(original: Path, tmp_path: Path, ckpt_format: str) -> None:
    layout = ["--target-tensor-parallel-size", "2", "--target-expert-parallel-size", "4", "--ckpt-format", ckpt_format]
    save = tmp_path / "megatron"
    left = convert_and_kill(original, save, "--loader", "mixtral_hf", *layout)
    assert left  # or no kill came in time, and nothing was tested
    for folder in left:
        assert not list(folder.glob("latest_checkpointed_iteration.txt")), "Megatron would load it"
        with pytest.raises(CheckpointError):
            megatron.open(folder)
    back = convert(Options(save, tmp_path / "back", loads="megatron", saves="huggingface", verify=True))
    check_identical(back, original)


def test_to_hugging_face(original: Path, tmp_path: Path) -> None:
    megatron_folder = convert(Options(original, tmp_path / "megatron", tensor=2, expert=2))
    arguments = ["--loader", "mixtral_mg", "--save-model-type", "huggingface"]
    left = convert_and_kill(megatron_folder, tmp_path / "back", *arguments)
    assert left
    for folder in left:
        with pytest.raises(CheckpointError):
            huggingface.open(folder)
        with pytest.raises((OSError, ValueError)):
            hugging_face.load(folder)
    check_identical(tmp_path / "back", original)
    assert (tmp_path / "back" / "config.json").is_file()
