"""Bad input ends the job with an exit code and one paragraph: what was found, what is allowed, what to do next."""

import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system_tests import releases
from tests.system_tests.launcher import Run, environment, run, train
from tests.system_tests.mixtral import tiny

pytestmark = pytest.mark.xdist_group("bad_input")  # one worker: they share runs

SENTENCES, LENGTH = 40, 200


def complaint(ended: Run, *expected: str) -> None:
    """The job failed, and its only paragraph has the ``expected`` words."""
    ended.failed()
    assert len(ended.paragraphs) == 1, ended.tail()
    for words in expected:
        assert words in ended.paragraphs[0]


def imported(megatron: Path, **variables: str) -> Run:
    command = [sys.executable, "-c", "import torch, megatron.core.tensor_parallel.cross_entropy"]
    return run(command, environment(megatron, ASCEND_PATCH="1", ASCEND_PATCH_DEVICE="cpu", **variables))


@pytest.fixture
def modified_megatron(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """modified_megatron(file, old, new): a copy of the installed Megatron with one text replaced."""

    def modify(file: str, old: str, new: str) -> Path:
        import importlib.util

        (installed,) = importlib.util.find_spec("megatron").submodule_search_locations
        shutil.copytree(installed, tmp_path / "megatron", copy_function=os.symlink)
        copy = tmp_path / "megatron" / file
        text = copy.read_text()
        assert old in text
        copy.unlink()
        copy.write_text(text.replace(old, new))
        return tmp_path

    return modify


def test_unsupported_megatron(modified_megatron: Callable[[str, str, str], Path]) -> None:
    minor = releases.INSTALLED.split(".")[1]
    place = modified_megatron("core/package_info.py", f"MINOR = {minor}", "MINOR = 12")
    complaint(imported(place), "Megatron-LM 0.12", str(place), ">=0.16.1", "ascend-patch drift")


def test_drifted_megatron(modified_megatron: Callable[[str, str, str], Path]) -> None:
    place = modified_megatron(
        "core/tensor_parallel/cross_entropy.py",
        "def vocab_parallel_cross_entropy(",
        "def vocab_parallel_cross_entropy(\n    temperature,\n   ",
    )
    complaint(
        imported(place),
        f"Megatron-LM {releases.INSTALLED}",
        "loss.cross_entropy",
        "ASCEND_PATCH_DISABLE=loss.cross_entropy",
        "ASCEND_PATCH_ALLOW_DRIFT=1",
    )
    imported(place, ASCEND_PATCH_DISABLE="loss.cross_entropy").succeeded()
    imported(place, ASCEND_PATCH_ALLOW_DRIFT="1").succeeded()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Prefix of a whole dataset: sequences of uint16 tokens, one a document."""
    prefix = tmp_path / "text_document"
    tokens = [(number * 7919) % 1000 for number in range(SENTENCES * LENGTH)]
    prefix.with_suffix(".bin").write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, SENTENCES, SENTENCES + 1)
        + struct.pack(f"<{SENTENCES}i", *[LENGTH] * SENTENCES)
        + struct.pack(f"<{SENTENCES}q", *[2 * LENGTH * number for number in range(SENTENCES)])
        + struct.pack(f"<{SENTENCES + 1}q", *range(SENTENCES + 1))
    )
    return prefix


def read(prefix: Path, processes: int = 1) -> Run:
    return train(tiny(mock_data=False, data_path=prefix, split="100,0,0", train_iters=1), processes=processes)


def test_dataset_that_is_whole(dataset: Path) -> None:
    assert read(dataset).succeeded().losses[1] > 6


def test_dataset_too_small_for_its_splits(dataset: Path) -> None:
    """Upstream would look for text for ever."""
    flags = {"mock_data": False, "data_path": dataset, "split": f"{SENTENCES * 9},1,0", "train_iters": 1}
    complaint(train(tiny(**flags)), f"--split {SENTENCES * 9},1,0 leaves no document of {dataset} for the valid split")


def test_dataset_without_an_index(dataset: Path) -> None:
    dataset.with_suffix(".idx").unlink()
    complaint(read(dataset, processes=2), f"{dataset}.idx is missing", "--data-path", "tools/preprocess_data.py")


def test_dataset_half_written(dataset: Path) -> None:
    file = dataset.with_suffix(".bin")
    os.truncate(file, file.stat().st_size // 2)
    complaint(read(dataset), f"{file} is cut off", "bytes", "again")


def test_tokenizer_folder_without_a_model(tmp_path: Path) -> None:
    """Both ranks fail alike; one of them says so."""
    (tmp_path / "README.md").write_text("no model\n")
    flags = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": tmp_path, "vocab_size": False}
    ended = train(tiny(**flags), processes=2)
    complaint(ended, "HuggingFaceTokenizer", f"{tmp_path} (a folder with README.md)", "tokenizer.model")


def test_world_size_that_does_not_divide() -> None:
    ended = train(tiny(tensor_model_parallel_size=2, sequence_parallel=True)).failed()
    assert "world size (1) is not divisible by" in ended.output  # upstream's own words


def test_fp8() -> None:
    complaint(train(tiny(fp8_format="hybrid")), "--fp8-format hybrid", "--bf16", "Leave the flag out")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint in each format, named as it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("torch_dist", "torch"):
        train(tiny(train_iters=1, save=folder / name, save_interval=1, ckpt_format=name)).succeeded()
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "file"), [("torch_dist", "__0_0.distcp"), ("torch", "model_optim_rng.pt")])
def test_truncated_checkpoint(checkpoints: Path, tmp_path: Path, name: str, file: str) -> None:
    copy = tmp_path / name
    shutil.copytree(checkpoints / name, copy)
    (damaged,) = copy.rglob(file)
    os.truncate(damaged, damaged.stat().st_size // 2)
    before = content(copy)
    ended = train(tiny(train_iters=2, load=copy, save=copy, save_interval=1, ckpt_format=name))
    complaint(ended, f"--load {copy}", "latest iteration: '1'", "cut off", "latest_checkpointed_iteration.txt")
    assert content(copy) == before


@pytest.mark.parametrize("name", ["torch_dist", "torch"])
def test_checkpoint_of_another_model(checkpoints: Path, name: str) -> None:
    before = content(checkpoints)
    ended = train(tiny(train_iters=2, load=checkpoints / name, ckpt_format=name, ffn_hidden_size=192))
    complaint(ended, f"--load {checkpoints / name}", "of another model", "Correct the arguments")
    assert content(checkpoints) == before
