"""Paragraphs about bad input, and that good input passes untouched."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.features import inputs


@pytest.fixture(params=[numpy.uint16, numpy.int32])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Prefix of a dataset that upstream's own builder wrote: documents of 1 to 9 tokens."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix = tmp_path / "text_document"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=request.param)
    for length in range(1, 10):
        builder.add_document(torch.arange(length), [length])
    builder.finalize(f"{prefix}.idx")
    return prefix


def test_whole_dataset(dataset: Path) -> None:
    inputs.check_dataset(str(dataset))


def test_index_cut_off_anywhere(dataset: Path) -> None:
    index = dataset.with_suffix(".idx")
    whole = index.read_bytes()
    for length in range(len(whole)):
        index.write_bytes(whole[:length])
        with pytest.raises(AscendPatchError, match=r"text_document\.idx .*Prepare the data again"):
            inputs.check_dataset(str(dataset))


def test_data_cut_off(dataset: Path) -> None:
    data = dataset.with_suffix(".bin")
    size = data.stat().st_size
    os.truncate(data, size - 1)
    with pytest.raises(AscendPatchError, match=rf"points to {size} bytes and it has {size - 1}"):
        inputs.check_dataset(str(dataset))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(AscendPatchError, match=r"none\.idx and .*none\.bin is missing.*--data-path"):
        inputs.check_dataset(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("position", "message"), [(0, "of another format"), (9, "version 255"), (17, "token type 255")]
)
def test_another_format(dataset: Path, position: int, message: str) -> None:
    index = dataset.with_suffix(".idx")
    content = bytearray(index.read_bytes())
    content[position] = 255
    index.write_bytes(content)
    with pytest.raises(AscendPatchError, match=message):
        inputs.check_dataset(str(dataset))


def test_empty_dataset(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    IndexedDatasetBuilder(str(tmp_path / "a.bin")).finalize(str(tmp_path / "a.idx"))
    with pytest.raises(AscendPatchError, match="holds no sequences"):
        inputs.check_dataset(str(tmp_path / "a"))


@pytest.mark.parametrize("options", [{"object_storage_config": object()}, {"fast_cache_load": True}])
def test_files_elsewhere_are_left_to_upstream(tmp_path: Path, options: dict) -> None:
    calls = []
    wrapped = inputs.initialize(lambda *args, **kwargs: calls.append(args[1]))
    wrapped(SimpleNamespace(), "s3://bucket/a", False, True, **{"object_storage_config": None, **options})
    assert calls == ["s3://bucket/a"]


def test_damaged_dataset_ends_without_further_noise(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's __del__ expects attributes that a failed initialisation has not set."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    noise: list = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: noise.append(str(unraisable.exc_value)))
    monkeypatch.setattr(IndexedDataset, "initialize", inputs.initialize(IndexedDataset.initialize))
    whole = IndexedDataset(str(dataset))
    assert list(whole[2]) == [0, 1, 2]  # a view of a file that is mapped as long as `whole` lives
    del whole
    dataset.with_suffix(".bin").unlink()
    with pytest.raises(AscendPatchError):
        IndexedDataset(str(dataset))
    gc.collect()
    assert noise == []


def failing(error: BaseException) -> Callable:
    def original(*args, **kwargs):
        raise error

    return original


@pytest.mark.parametrize("kind", ["HuggingFaceTokenizer", "Llama2Tokenizer"])
def test_tokenizer(tmp_path: Path, kind: str) -> None:
    args = SimpleNamespace(tokenizer_type=kind, tokenizer_model=str(tmp_path))
    assert inputs.build_tokenizer(lambda args, **kwargs: (args, kwargs))(args, x=1) == (args, {"x": 1})
    build = inputs.build_tokenizer(failing(ValueError("bad\n  file " + 500 * "x")))
    with pytest.raises(AscendPatchError) as caught:
        build(args)
    text = str(caught.value)
    assert f"--tokenizer-type {kind} could not be built" in text
    assert f"{tmp_path} (an empty folder): ValueError: bad file xxx" in text
    assert "\n" not in text
    assert len(text) < 1000


@pytest.mark.parametrize(
    ("path", "found"), [(None, "not given"), ("missing", "no such file or folder"), ("file", "a file of 3 bytes")]
)
def test_what_is_at_a_tokenizer_path(tmp_path: Path, path: str | None, found: str) -> None:
    (tmp_path / "file").write_text("abc")
    assert inputs._contents(str(tmp_path / path) if path else None) == found


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Megatron's arguments, with a folder of two checkpoints."""
    import megatron.training

    for number in (2, 4):
        (tmp_path / f"iter_{number:07d}").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4\n")
    args = SimpleNamespace(load=str(tmp_path), exit_on_missing_checkpoint=False)
    monkeypatch.setattr(megatron.training, "get_args", lambda: args)
    return args


def test_checkpoint_that_loads(arguments: SimpleNamespace) -> None:
    assert inputs.load_checkpoint(lambda *args, **kwargs: (args, kwargs))(1, 2, 3, strict=False) == (
        (1, 2, 3, "load"),
        {"strict": False},
    )


@pytest.mark.parametrize(("content", "read"), [("", 4), ("\n", 4), ("2", 2), ("release", 0)])
def test_a_tracker_that_was_being_written(arguments: SimpleNamespace, content: str, read: int) -> None:
    """Upstream's own function reads what we leave it."""
    from megatron.training.checkpointing import read_metadata

    tracker = Path(arguments.load) / "latest_checkpointed_iteration.txt"
    tracker.write_text(content)
    os.utime(tracker.parent / "iter_0000002", (1, 1))
    found, release = inputs.read_metadata(read_metadata)(str(tracker))
    assert (found, release) == (read, content == "release")
    assert sorted(path.name for path in tracker.parent.iterdir()) == ["iter_0000002", "iter_0000004", tracker.name]


def test_the_checkpoint_that_was_written_last_counts(arguments: SimpleNamespace) -> None:
    """One with a higher number was left half-written before, or by a run that was given up."""
    from megatron.training.checkpointing import read_metadata

    tracker = Path(arguments.load) / "latest_checkpointed_iteration.txt"
    tracker.write_text("")
    for seconds, number in enumerate((4, 2)):
        folder = tracker.parent / f"iter_{number:07d}"
        (folder / "common.pt").touch()
        for path in (folder, folder / "common.pt"):
            os.utime(path, (seconds, seconds))
    assert inputs.read_metadata(read_metadata)(str(tracker)) == (2, False)


def test_a_lost_rank_is_not_the_checkpoints_fault(arguments: SimpleNamespace) -> None:
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        inputs.load_checkpoint(failing(RuntimeError("Connection closed by peer")))(None, None, None)


def test_an_empty_tracker_alone_is_upstreams_to_refuse(tmp_path: Path) -> None:
    from megatron.training.checkpointing import read_metadata

    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.touch()
    with pytest.raises(SystemExit):
        inputs.read_metadata(read_metadata)(str(tracker))
    assert tracker.read_text() == ""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("size mismatch"), "RuntimeError: size mismatch."),
        (AssertionError(), "AssertionError:."),
        (SystemExit(), "see above"),
        (SystemExit(0), "see above"),
    ],
)
def test_checkpoint_that_does_not_load(arguments: SimpleNamespace, error: BaseException, reason: str) -> None:
    with pytest.raises(AscendPatchError) as caught:
        inputs.load_checkpoint(failing(error))(None, None, None)
    text = str(caught.value)
    assert f"--load {arguments.load} (latest iteration: '4'; there: iter_0000002, iter_0000004)" in text
    assert reason in text


def test_checkpoint_that_torch_cannot_read(arguments: SimpleNamespace) -> None:
    """Its exception is not an Exception."""
    from torch.distributed.checkpoint import CheckpointException

    error = CheckpointException("x", {1: (EOFError("short file"), None), 0: (KeyError("weight"), None)})
    with pytest.raises(AscendPatchError, match="KeyError: 'weight'"):
        inputs.load_checkpoint(failing(error))(None, None, None)


@pytest.mark.parametrize(("code", "exits_on_missing"), [(3, False), (None, True)])
def test_intended_exits_stay(arguments: SimpleNamespace, code: int | None, exits_on_missing: bool) -> None:
    arguments.exit_on_missing_checkpoint = exits_on_missing
    with pytest.raises(SystemExit) as caught:
        inputs.load_checkpoint(failing(SystemExit(code)))(None, None, None)
    assert caught.value.code == code


def test_our_own_errors_pass(arguments: SimpleNamespace) -> None:
    error = AscendPatchError("said already")
    for wrapped in (inputs.load_checkpoint(failing(error)), inputs.build_tokenizer(failing(error))):
        with pytest.raises(AscendPatchError) as caught:
            wrapped(None, None, None)
        assert caught.value is error


def test_fp8() -> None:
    calls = []
    post_init = inputs.post_init(calls.append)
    plain = SimpleNamespace(fp8=None, fp4=None)
    post_init(plain)
    post_init(SimpleNamespace(fp8=None))  # before 0.17 there is no fp4
    assert calls[0] is plain
    assert len(calls) == 2
    for flag in ("fp8", "fp4"):
        with pytest.raises(AscendPatchError, match=rf"--{flag}-format e4m3 .* Leave the flag out"):
            post_init(SimpleNamespace(**{"fp8": None, "fp4": None, flag: "e4m3"}))
