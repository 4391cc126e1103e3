"""Prepared instruction data read back."""

from pathlib import Path

import numpy as np
import pytest

from ascend_patch.data.errors import DataError
from ascend_patch.data.instruction import IDS, LABELS
from ascend_patch.data.stored import StoredConversations, column_prefix, is_stored
from tests.unit_tests.data.stored_data import example, write

SHORT = example([1, 11, 12, 2], "--++")
LONG = example([1, 21, 22, 23, 24, 2], "----++")
DOCUMENTS = [[SHORT], [LONG], [SHORT, LONG]]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return write(tmp_path / "alpaca", DOCUMENTS)


def test_what_was_written_is_read(prefix: str) -> None:
    stored = StoredConversations(prefix)
    assert len(stored) == 3
    for index, expected in enumerate(DOCUMENTS):
        document = stored[index]
        assert len(document) == len(expected)
        for one, other in zip(document, expected, strict=True):
            assert np.array_equal(one.ids, other.ids)
            assert np.array_equal(one.learned, other.learned)


def test_is_stored(prefix: str) -> None:
    assert is_stored(prefix)
    assert not is_stored(f"{prefix}_packed_input_ids_document")
    assert not is_stored("nowhere")


@pytest.mark.parametrize("sequence_length", [8, 9])
def test_all_fit(prefix: str, sequence_length: int) -> None:
    stored = StoredConversations(prefix, sequence_length)
    assert (len(stored), stored.cut, stored.left_out) == (3, 0, 0)


@pytest.mark.parametrize(("sequence_length", "cut", "left_out"), [(5, 0, 0), (4, 1, 0), (3, 1, 1)])
def test_what_is_too_long(tmp_path: Path, sequence_length: int, cut: int, left_out: int) -> None:
    stored = StoredConversations(write(tmp_path / "padded", [[SHORT], [LONG], [SHORT]]), sequence_length)
    assert (len(stored), stored.cut, stored.left_out) == (3 - left_out, cut, left_out)
    kept = [SHORT, LONG, SHORT] if not left_out else [SHORT, SHORT]
    assert [stored[index][0].ids.tolist() for index in range(len(stored))] == [one.ids.tolist() for one in kept]
    with pytest.raises(IndexError):
        stored[len(stored)]


def test_packed_for_longer_samples(prefix: str) -> None:
    with pytest.raises(
        DataError, match=r"Document 2 of .*alpaca is 2 conversations packed into 8 positions, .* --seq-length 7\. .*or "
    ):
        StoredConversations(prefix, 7)


def test_packed_without_room_for_padding(tmp_path: Path) -> None:
    """Positions of the documents, with each conversation padded to a multiple of 4: 12, 4 + 8, 4 + 8 + 4."""
    prefix = write(tmp_path / "alpaca", [[LONG], [SHORT, LONG], [SHORT, LONG, SHORT]])
    assert len(StoredConversations(prefix, 12)) == 3
    assert len(StoredConversations(prefix, 16, multiple=4)) == 3
    with pytest.raises(
        DataError,
        match=r"Document 2 of .* is 3 conversations packed into 16 positions, more than --seq-length 8, each "
        r"padded to a multiple of 4 for --context-parallel-size\. Train with --seq-length 16 or more, or .* with "
        r"--pack --seq-length 8 --pad-to-multiple-of 4\.",
    ):
        StoredConversations(prefix, 8, multiple=4)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere_packed_input_ids_document\.idx is missing.*--handler-name"):
        StoredConversations(str(tmp_path / "nowhere"))


def test_columns_of_two_datasets(prefix: str, tmp_path: Path) -> None:
    other = write(tmp_path / "other", [[SHORT], [SHORT, LONG], [LONG]])
    for suffix in (".bin", ".idx"):
        Path(column_prefix(other, LABELS) + suffix).replace(column_prefix(prefix, LABELS) + suffix)
    with pytest.raises(DataError, match="have different sequence_lengths: they were not written together"):
        StoredConversations(prefix)


def test_labels_that_are_not_the_ids(prefix: str) -> None:
    path = Path(column_prefix(prefix, LABELS) + ".bin")
    labels = np.fromfile(path, np.int32)
    labels[2] += 1
    labels.tofile(path)
    stored = StoredConversations(prefix)
    with pytest.raises(DataError, match=rf"Sequence 0 of .*{LABELS}_document has labels .* nor the token of .*{IDS}"):
        stored[0]
