"""Datasets are upstream's byte for byte, complete or not there, and go on after an interruption."""

import os
import random

import numpy as np
import pytest

from ascend_patch.data import index
from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import Documents, Encoded
from ascend_patch.data.writer import DatasetWriter, Output

UINT16, INT32 = np.dtype(np.uint16), np.dtype(np.int32)


def draw_documents(draw: random.Random, count: int, most: int = 60_000) -> list[list[list[int]]]:
    return [
        [[draw.randrange(most) for _ in range(draw.randrange(1, 6))] for _ in range(draw.randrange(3))]
        for _ in range(count)
    ]


def encoded(documents, dtype=UINT16, column="text") -> Encoded:
    sequences = [sequence for document in documents for sequence in document]
    packed = Documents.of(sequences, dtype)
    sizes = np.array([len(document) for document in documents], np.int32)
    return Encoded({column: Documents(packed.tokens, packed.sequence_lengths, sizes)}, {"documents": len(documents)})


def files(prefix) -> tuple[bytes, bytes]:
    return prefix.with_name(f"{prefix.name}.bin").read_bytes(), prefix.with_name(f"{prefix.name}.idx").read_bytes()


def write_with_upstream(prefix, documents, dtype) -> tuple[bytes, bytes]:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype.type)
    for document in documents:
        builder.add_document([id for sequence in document for id in sequence], [len(sequence) for sequence in document])
    builder.finalize(f"{prefix}.idx")
    return files(prefix)


@pytest.fixture
def draw():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def output(tmp_path):
    return Output(tmp_path / "new" / "my_text_document", UINT16)


def writer(output, settings=None, **kwargs) -> DatasetWriter:
    return DatasetWriter(output.prefix.parent / "my.unfinished", {"text": output}, settings, **kwargs)


@pytest.mark.parametrize("dtype", [UINT16, INT32])
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_the_bytes_are_upstreams(tmp_path, draw, monkeypatch, dtype, block):
    monkeypatch.setattr(index, "BLOCK", block)
    documents = draw_documents(draw, 40)
    output = Output(tmp_path / "ours", dtype)
    with writer(output) as ours:
        for start in range(0, 40, 7):
            ours.append(encoded(documents[start : start + 7], dtype))
        (dataset,) = ours.finish()
    assert files(output.prefix) == write_with_upstream(tmp_path / "theirs", documents, dtype)
    assert (dataset.documents, dataset.tokens) == (40, sum(len(ids) for document in documents for ids in document))
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{end}" for name in ("ours", "theirs") for end in ("bin", "idx")
    }


def test_it_goes_on_behind_what_was_saved(output, draw):
    documents = draw_documents(draw, 9)
    with pytest.raises(KeyboardInterrupt), writer(output, {"a": (1, 2)}) as first:
        first.append(encoded(documents[:3]), records=4, skipped=1)
        first.save()
        first.append(encoded(documents[3:5]), records=2)
        raise KeyboardInterrupt
    assert not output.prefix.with_name("my_text_document.idx").exists()
    with writer(output, {"a": (1, 2)}) as second:
        state = second.state
        assert (state.chunks, state.records, state.skipped, state.documents) == (2, 6, 1, 5)
        second.append(encoded(documents[5:]))
        second.finish()
        assert state.notes == {"documents": 9}
    assert files(output.prefix) == write_with_upstream(output.prefix.with_name("theirs"), documents, UINT16)


def test_what_was_not_saved_is_cut_off(output, draw):
    """As after a power cut: the files hold more than the state knows of."""
    documents = draw_documents(draw, 6)
    first = writer(output)
    first.append(encoded(documents[:2]))
    first.save()
    first.append(encoded(documents[2:]))
    for column in first._columns.values():
        column.flush()
    first._lock.close()
    with writer(output) as second:
        assert second.state.documents == 2
        second.append(encoded(documents[2:]))
        second.finish()
    assert files(output.prefix) == write_with_upstream(output.prefix.with_name("theirs"), documents, UINT16)


def test_files_shorter_than_the_state_are_refused(output, draw):
    with pytest.raises(KeyboardInterrupt), writer(output) as first:
        first.append(encoded([[[1, 2, 3]]]))
        first.save()
        raise KeyboardInterrupt
    os.truncate(output.prefix.parent / "my.unfinished" / "text.bin", 2)
    with pytest.raises(DataError, match="text.bin is shorter than .* Add --restart"):
        writer(output)


def test_without_a_save_nothing_is_left(output):
    with pytest.raises(DataError, match="bad"), writer(output) as first:
        first.append(encoded([[[1]]]))
        raise DataError("bad")
    assert list(output.prefix.parent.iterdir()) == []


def test_other_settings(output):
    with pytest.raises(KeyboardInterrupt), writer(output, {"--append-eod": True, "same": 1}) as first:
        first.append(encoded([[[1]]]))
        first.save()
        raise KeyboardInterrupt
    other = {"--append-eod": False, "same": 1, "new": 2}
    with pytest.raises(DataError, match=r"interrupted run with other settings \(--append-eod, new\).*--restart"):
        writer(output, other)
    with writer(output, other, restart=True) as second:
        assert second.state.chunks == 0
        second.append(encoded([[[2]]]))
        second.finish()
    assert files(output.prefix)[0] == np.array([2], UINT16).tobytes()


@pytest.mark.parametrize("stop", [1, 2])
def test_an_interruption_between_the_renames(output, monkeypatch, stop):
    """An .idx never stands beside a .bin it does not belong to; the next run ends what was begun."""
    with writer(output) as old:
        old.append(encoded([[[1, 1, 1]]]))
        old.finish()
    replace, calls = os.replace, []

    def failing(source, target):
        if str(target).startswith(str(output.prefix)):
            calls.append(target)
            if len(calls) == stop:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt), writer(output) as first:
        first.append(encoded([[[2]], [[3]]]))
        first.finish()
    assert not output.prefix.with_name("my_text_document.idx").exists()
    monkeypatch.undo()
    with writer(output) as second:
        assert second.state.complete
        (dataset,) = second.finish()
    assert (dataset.documents, dataset.tokens) == (2, 2)
    documents = [[[2]], [[3]]]
    assert files(output.prefix) == write_with_upstream(output.prefix.with_name("theirs"), documents, UINT16)


def test_two_at_once(output):
    with pytest.raises(DataError, match="bad"), writer(output):
        with pytest.raises(DataError, match="Another process is writing into .*my.unfinished"):
            writer(output)
        raise DataError("bad")


def test_no_documents(output):
    with pytest.raises(DataError, match="The input holds no documents"), writer(output) as empty:
        empty.append(encoded([]))
        empty.finish()
    assert list(output.prefix.parent.iterdir()) == []


def test_a_full_disk_keeps_what_was_saved(output, monkeypatch):
    with pytest.raises(OSError, match="No space"), writer(output) as first:
        first.append(encoded([[[1]]]))
        first.save()
        raise OSError(28, "No space left on device")
    with writer(output) as second:
        assert second.state.chunks == 1


def test_ids_of_another_dtype(output):
    with pytest.raises(TypeError, match="int32"), writer(output) as first:
        first.append(encoded([[[1]]], INT32))
