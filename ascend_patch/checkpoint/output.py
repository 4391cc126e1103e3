"""The folder that a conversion writes: called unfinished until all of it is on disk, then renamed."""

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ascend_patch.checkpoint.errors import CheckpointError

GB = 1e9


_SUFFIX = ".unfinished"


def unfinished(folder: Path) -> Path:
    """Where ``folder`` is written before it is renamed to its name."""
    return folder.with_name(folder.name + _SUFFIX)


def is_unfinished(folder: Path) -> bool:
    """Is it the name of a folder that is being written, or whose conversion was interrupted?"""
    return folder.name.endswith(_SUFFIX)


def check_new(folder: Path) -> None:
    """Can ``folder`` be made?

    Raises:
        CheckpointError: something is there already, or it cannot be the result of a rename.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        if os.path.ismount(folder):
            raise CheckpointError(f"{folder} is a mount point, and cannot be replaced. Name a folder in it.")
        return
    if folder.exists() or folder.is_symlink():
        raise CheckpointError(f"{folder} exists already. It is left as it is: remove it, or name another --save-dir.")


def make(folder: Path) -> None:
    """Make a folder and its parents.

    Raises:
        CheckpointError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error.strerror}.") from error


def clear(folder: Path, *keep: str) -> None:
    """Remove what is in a folder, except the names in ``keep``."""
    for entry in folder.iterdir():
        if entry.name in keep:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def missing_bytes(folder: Path) -> int:
    """What the holes in the files of a folder will take of the disk."""
    sizes = [file.stat() for file in _files(folder)]
    return sum(max(0, size.st_size - size.st_blocks * 512) for size in sizes)


def check_room(folder: Path, needed: int) -> None:
    """Is there room for so many bytes on the disk of ``folder``?

    Raises:
        CheckpointError: there is not; says how much is missing.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CheckpointError(
            f"{folder} needs another {needed / GB:.3f} GB, but its disk has {free / GB:.3f} GB left. "
            f"Make room for {(needed - free) / GB:.3f} GB, or name a --save-dir on another disk."
        )


def reserve(folder: Path) -> None:
    """Give the holes in the files of ``folder`` their place on the disk.

    No other process can take it then, and writing is faster: the file system need not look for room all the time.

    Raises:
        CheckpointError: there is too little room.
    """
    for file in _files(folder):
        descriptor = os.open(file, os.O_RDWR)
        try:
            _fallocate(descriptor, os.fstat(descriptor).st_size)
        except OSError as error:
            raise CheckpointError(
                f"There is no room for {file}: {error.strerror}. Make room, or name a --save-dir on another disk."
            ) from error
        finally:
            os.close(descriptor)


def _fallocate(descriptor: int, nbytes: int) -> None:
    """fallocate(2); `os.posix_fallocate` would write to every block where a file system does not know it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if nbytes and libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)):
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(code, os.strerror(code))


def sync(folder: Path) -> None:
    """Wait until everything in ``folder`` is on disk.

    Raises:
        CheckpointError: it cannot be written there.
    """
    for path in [*_files(folder), *(Path(top) for top, _, _ in os.walk(folder)), folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be written: {error.strerror}. When that is mended, run the same command again."
            ) from error
        finally:
            os.close(descriptor)


def publish(folder: Path) -> None:
    """Give the folder that was written under the name :func:`unfinished` its own name.

    Raises:
        CheckpointError: something has been put there meanwhile.
    """
    try:
        unfinished(folder).rename(folder)
    except OSError as error:
        raise CheckpointError(
            f"{unfinished(folder)} is complete, but cannot be renamed to {folder}: {error.strerror}. "
            f"Rename it yourself."
        ) from error
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    return (Path(top) / name for top, _, names in os.walk(folder) for name in names)
