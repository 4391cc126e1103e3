"""The folder of a conversion: where it may be, whether it fits, what becomes of it."""

import ctypes
import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from ascend_patch.checkpoint import output
from ascend_patch.checkpoint.errors import CheckpointError


@pytest.mark.parametrize("there", ["full", "file", "link"])
def test_what_is_there_is_refused(there, tmp_path):
    folder = tmp_path / "out"
    if there == "full":
        (folder / "a").mkdir(parents=True)
    elif there == "file":
        folder.touch()
    else:
        folder.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=f"{folder} exists already. It is left as it is"):
        output.check_new(folder)


def test_nothing_and_an_empty_folder_will_do(tmp_path):
    output.check_new(tmp_path / "deep" / "out")
    (tmp_path / "out").mkdir()
    output.check_new(tmp_path / "out")
    output.make(output.unfinished(tmp_path / "out"))
    output.publish(tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_mount_point_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path} is a mount point"):
        output.check_new(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/out cannot be made: Not a directory"):
        output.make(tmp_path / "file" / "out")


def test_holes_count_as_needed_and_data_does_not(tmp_path):
    (tmp_path / "sub").mkdir()
    hole, data = tmp_path / "sub" / "hole", tmp_path / "data"
    hole.touch()
    os.truncate(hole, 3 << 20)
    data.write_bytes(os.urandom(1 << 20))
    output.sync(tmp_path)
    assert output.missing_bytes(tmp_path) == 3 << 20


def test_holes_are_given_their_place(tmp_path):
    hole, data = tmp_path / "hole", tmp_path / "data"
    for file, nbytes in ((hole, 3 << 20), (data, 12345), (tmp_path / "empty", 0)):
        file.touch()
        os.truncate(file, nbytes)
    data.write_bytes(b"x" * 12345)
    output.reserve(tmp_path)
    assert output.missing_bytes(tmp_path) == 0
    assert hole.stat().st_size == 3 << 20 and data.read_bytes() == b"x" * 12345


@pytest.mark.parametrize(("code", "is_error"), [(errno.ENOSPC, True), (errno.EOPNOTSUPP, False)])
def test_where_no_place_can_be_given(code, is_error, tmp_path, monkeypatch):
    class Libc:
        def fallocate(self, *args):
            ctypes.set_errno(code)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: Libc())
    (tmp_path / "file").write_bytes(b"1")
    if is_error:
        with pytest.raises(CheckpointError, match=f"no room for {tmp_path}/file: No space left on device"):
            output.reserve(tmp_path)
    else:
        output.reserve(tmp_path)


def test_too_little_room_is_told_in_numbers(tmp_path, monkeypatch):
    free = namedtuple("Usage", "free")(2_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    output.check_room(tmp_path, 2_000_000_000)
    with pytest.raises(CheckpointError) as error:
        output.check_room(tmp_path, 3_500_000_000)
    assert f"{tmp_path} needs another 3.500 GB, but its disk has 2.000 GB left. Make room for 1.500 GB" in str(
        error.value
    )


def test_what_appears_in_its_place_is_not_replaced(tmp_path):
    folder = tmp_path / "out"
    for path in (folder, output.unfinished(folder)):
        path.mkdir()
        (path / path.name).touch()
    with pytest.raises(CheckpointError, match=r"out.unfinished is complete, but cannot be renamed to .*out"):
        output.publish(folder)
    assert (folder / "out").exists() and (output.unfinished(folder) / "out.unfinished").exists()


def test_clear_keeps_what_it_is_told_to(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for name in ("keep", "go", "folder/go"):
        (tmp_path / name).touch()
    output.clear(tmp_path, "keep")
    assert list(tmp_path.iterdir()) == [Path(tmp_path / "keep")]
