"""The journal of a conversion: what it keeps, what it refuses, where it may be cut off."""

import pytest
import torch

from ascend_patch.checkpoint import journal
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.journal import Journal
from ascend_patch.checkpoint.stored import Checkpoint, Piece, StoredTensor
from tests.unit_tests.checkpoint.small_models import MISTRAL

JOB = {"source": {"folder": "/weights"}, "target": {"tensor": 2, "stages": (1, 2)}}


def checkpoint(folder) -> Checkpoint:
    tensor = StoredTensor(folder / "release" / "a.pt", 64, (2, 6, 4), torch.bfloat16)
    pieces = {
        "one": [Piece(tensor, (0, 3), (0, 4), (2, 0)), Piece(tensor, (3, 5), (1, 3), (6, 1))],
        "two": [Piece(StoredTensor(folder / "b", 0, (5,), torch.float32), (0, 1), (0, 5))],
    }
    return Checkpoint(folder, MISTRAL, torch.bfloat16, pieces, {"one": [Piece(tensor, (5, 7), (0, 4), (8, 0))]})


def write(folder) -> Checkpoint:
    target = checkpoint(folder)
    with Journal.begin(folder, JOB) as log:
        log.lay_out(target)
        log.wrote("two", "abc")
        log.wrote("one", "def")
    return target


def test_it_gives_back_what_was_recorded(tmp_path):
    target = write(tmp_path)
    with Journal.resume(tmp_path, JOB) as log:
        assert log.holes == (target.pieces, target.fill)
        assert log.written == {"two": "abc", "one": "def"}
        log.wrote("three", "ghi")
    with Journal.resume(tmp_path, JOB) as log:
        assert log.written == {"two": "abc", "one": "def", "three": "ghi"}


def test_it_may_be_cut_off_anywhere(tmp_path):
    target = write(tmp_path)
    file = tmp_path / journal.NAME
    whole = file.read_bytes()
    states = set()
    for length in range(len(whole) + 1):
        file.write_bytes(whole[:length])
        with Journal.resume(tmp_path, JOB) as log:
            states.add((log.holes is not None, *log.written))
            if log.holes is None:
                log.lay_out(target)
            log.wrote("new", "123")
        with Journal.resume(tmp_path, JOB) as log:
            assert log.holes == (target.pieces, target.fill)
            assert log.written["new"] == "123"
    assert states == {(False,), (True,), (True, "two"), (True, "two", "one")}


def test_another_job_is_told_what_differs(tmp_path):
    write(tmp_path)
    other = {"source": {"folder": "/other"}, "target": {"tensor": 4, "stages": (1, 2)}}
    with pytest.raises(CheckpointError) as error:
        Journal.resume(tmp_path, other)
    assert "source folder was /weights and is /other; target tensor was 2 and is 4." in str(error.value)
    assert str(tmp_path) in str(error.value)
    # The failed attempt has let go of it.
    with Journal.resume(tmp_path, JOB):
        pass


def test_two_processes_cannot_write(tmp_path):
    with Journal.begin(tmp_path, JOB), pytest.raises(CheckpointError, match="being written by another process"):
        Journal.resume(tmp_path, JOB)
    with Journal.resume(tmp_path, JOB):
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=f"{tmp_path} exists, but is no unfinished conversion"):
        Journal.resume(tmp_path, JOB)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("damage", ["not json\n", "[]\n", '{"job": 1}\n{"pieces": 3}\n', "\0\0\0\n"])
def test_a_damaged_journal_says_so(damage, tmp_path):
    (tmp_path / journal.NAME).write_text(damage)
    with pytest.raises(CheckpointError, match=rf"{journal.NAME} is damaged. Remove {tmp_path} and convert again"):
        Journal.resume(tmp_path, JOB)
