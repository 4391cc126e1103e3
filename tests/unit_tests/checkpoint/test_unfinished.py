"""Writing a checkpoint, being interrupted, going on: only what is missing is written, and nothing half-made loads."""

import errno
import os
import random
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint import huggingface, journal, output, transfer
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.progress import Silent
from ascend_patch.checkpoint.unfinished import Work, write
from tests.unit_tests.checkpoint import small_models
from tests.unit_tests.checkpoint.small_models import MIXTRAL, Interrupting, flip

TENSORS = MIXTRAL.tensors()


@pytest.fixture
def source(tmp_path) -> Path:
    return small_models.save(tmp_path / "source", MIXTRAL)


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """Names of the tensors that are copied."""
    names: list[str] = []
    copy = transfer.copy_tensor

    def counting(matrix, *args, **kwargs):
        sha256 = copy(matrix, *args, **kwargs)
        names.append(matrix.name)
        return sha256

    monkeypatch.setattr(transfer, "copy_tensor", counting)
    return names


def work(folder: Path, target: str = "copy") -> Work:
    """A copy of a Hugging Face folder."""
    source = huggingface.open(folder)
    return Work(
        source,
        source.dtype,
        {"folder": str(folder)},
        {"name": target},
        lambda new: huggingface.create(new, source.shape, source.dtype, max_shard=20_000),
        lambda new: (new / "tokenizer.model").touch(),
        lambda new: shutil.copy(folder / "config.json", new),
    )


def check_same(folder: Path, source: Path) -> None:
    found, wanted = small_models.weights(folder), small_models.weights(source)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name].view(torch.int16), value.view(torch.int16)), name


def interrupted(source: Path, folder: Path, error: BaseException, fraction: float = 0.6) -> None:
    """Begin a conversion and have it end with ``error`` when a part of the bytes is done."""
    total = sum(piece.nbytes for (piece,) in huggingface.open(source).pieces.values())
    with pytest.raises(type(error)):
        write(folder, work(source), 2, Interrupting(error, int(fraction * total)))


def test_everything_is_written_and_nothing_else_is_left(source, tmp_path, written):
    folder = tmp_path / "deep" / "out"
    write(folder, work(source), 3, Interrupting())
    check_same(folder, source)
    assert sorted(written) == sorted(TENSORS)
    names = {file.name for file in folder.iterdir() if not file.name.startswith("model")}
    assert names == {"config.json", "conversion.json", "tokenizer.model"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CheckpointError("a bad tensor"), RuntimeError("a bug")])
def test_what_is_interrupted_does_not_load_and_continues(error, source, tmp_path, written):
    folder = tmp_path / "out"
    interrupted(source, folder, error)
    unfinished = output.unfinished(folder)
    assert not folder.exists() and not (unfinished / "config.json").exists()
    with pytest.raises(CheckpointError):
        huggingface.open(unfinished)
    recorded = [line for line in (unfinished / journal.NAME).read_text().splitlines() if '"tensor"' in line]
    assert 0 < len(recorded) < len(TENSORS)

    written.clear()
    progress = Interrupting()
    write(folder, work(source), 2, progress)
    assert len(written) == len(TENSORS) - len(recorded)
    assert f"Continuing: {len(recorded)} of {len(TENSORS)} tensors" in progress.lines[0]
    assert progress.bars == ["Checking", "Converting"]
    check_same(folder, source)


def test_it_may_be_interrupted_again_and_again(source, tmp_path, written):
    folder = tmp_path / "out"
    for tenth in range(1, 9):
        interrupted(source, folder, KeyboardInterrupt(), tenth / 10)
    written.clear()
    write(folder, work(source), 2, Interrupting())
    assert len(written) < len(TENSORS) / 2
    check_same(folder, source)


def test_what_was_lost_of_a_written_tensor_is_written_again(source, tmp_path, written):
    """As after a power cut: the journal is on disk, a tensor is not."""
    folder = tmp_path / "out"
    interrupted(source, folder, KeyboardInterrupt())
    with journal.Journal.resume(output.unfinished(folder), job_of(source)) as log:
        name = random.choice(list(log.written))
        count = len(log.written)
        (piece,) = log.holes[0][name]
    flip(piece.tensor.file, piece.tensor.offset)
    written.clear()
    write(folder, work(source), 2, Interrupting())
    assert name in written and len(written) == len(TENSORS) - count + 1
    check_same(folder, source)


def job_of(source: Path) -> dict:
    from ascend_patch.checkpoint.unfinished import _job

    return _job(work(source))


def test_an_interruption_before_the_files_are_laid_out(source, tmp_path):
    """The journal has only its first line; half of the skeleton may be there."""
    folder = tmp_path / "out"
    interrupted(source, folder, KeyboardInterrupt())
    file = output.unfinished(folder) / journal.NAME
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    (output.unfinished(folder) / "model-00001-of-00004.safetensors").write_bytes(b"half")
    write(folder, work(source), 2, Silent())
    check_same(folder, source)


def test_a_source_that_changed_meanwhile(source, tmp_path):
    folder = tmp_path / "out"
    interrupted(source, folder, KeyboardInterrupt())
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(CheckpointError, match=rf"bytes and time of {source}/model.safetensors was .* and is .*, 1\]"):
        write(folder, work(source), 2, Silent())


def test_another_target_does_not_continue_it(source, tmp_path):
    folder = tmp_path / "out"
    interrupted(source, folder, KeyboardInterrupt())
    with pytest.raises(CheckpointError, match="beginning of another conversion: target name was copy and is else"):
        write(folder, work(source, "else"), 2, Silent())


def test_too_small_a_disk_is_seen_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    folder = tmp_path / "out"
    with pytest.raises(CheckpointError, match="its disk has 0.000 GB left"):
        write(folder, work(source), 2, Silent())
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_disk_that_fills_up_meanwhile(source, tmp_path, monkeypatch):
    write_at = os.pwrite
    left = [20]

    def full_soon(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_at(*args)

    folder = tmp_path / "out"
    monkeypatch.setattr(os, "pwrite", full_soon)
    with pytest.raises(CheckpointError, match="No space left on device. Make room and run the same command again"):
        write(folder, work(source), 2, Silent())
    assert not folder.exists()
    monkeypatch.setattr(os, "pwrite", write_at)
    write(folder, work(source), 2, Silent())
    check_same(folder, source)
