"""Writes a new checkpoint into `FOLDER.unfinished`, which does not load, or goes on there; renames it at the end."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ascend_patch.checkpoint import journal, output
from ascend_patch.checkpoint.blocks import Matrix, matrices
from ascend_patch.checkpoint.journal import Journal
from ascend_patch.checkpoint.manifest import Manifest
from ascend_patch.checkpoint.progress import Progress
from ascend_patch.checkpoint.stored import Checkpoint
from ascend_patch.checkpoint.transfer import checksums, transfer


@dataclass(frozen=True)
class Work:
    """What is copied, and what surrounds it."""

    source: Checkpoint
    dtype: torch.dtype
    """Of what is written."""
    origin: Mapping[str, Any]
    """Where the weights come from, and..."""
    target: Mapping[str, Any]
    """... what becomes of them. A conversion is only continued if both are the same."""
    lay_out: Callable[[Path], Checkpoint]
    """Makes the new files in a folder, with holes for the tensors."""
    add_side_files: Callable[[Path], None]
    finish: Callable[[Path], None]
    """Writes the file without which the folder does not load."""

    @property
    def wanted(self) -> dict[str, Matrix]:
        """The canonical tensors as they are written."""
        return matrices(self.source.shape, self.dtype)


def write(folder: Path, work: Work, workers: int, progress: Progress) -> None:
    """Write ``folder``, or go on where a process that did the same work was interrupted.

    Raises:
        CheckpointError: `FOLDER.unfinished` is of other work or being written, the disk is full, or a tensor cannot be
            copied. Of a disk that is found to be too small before anything was copied nothing remains.
    """
    unfinished = output.unfinished(folder)
    fresh = not unfinished.exists()
    if fresh:
        output.make(unfinished)
    with (Journal.begin if fresh else Journal.resume)(unfinished, _job(work)) as log:
        try:
            target = _lay_out(work, unfinished, log)
        except BaseException:
            if fresh:
                shutil.rmtree(unfinished)
            raise
        _copy(work, target, log, workers, progress)
        Manifest(work.origin, work.target, work.source.shape, work.dtype, log.written).write(unfinished, work.source)
        work.add_side_files(unfinished)
        progress.say("Waiting until everything is on disk.")
        output.sync(unfinished)
        work.finish(unfinished)
        output.publish(folder)
        (folder / journal.NAME).unlink()


def _job(work: Work) -> dict[str, Any]:
    """What must not change between an interruption and its continuation."""
    files = {piece.tensor.file for pieces in work.source.pieces.values() for piece in pieces}
    stats = {str(file): file.stat() for file in sorted(files)}
    return {
        "source": work.origin,
        "target": work.target,
        "bytes and time of": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }


def _lay_out(work: Work, unfinished: Path, log: Journal) -> Checkpoint:
    """The new checkpoint with its holes, of which some may be filled already."""
    if log.holes is None:
        output.clear(unfinished, journal.NAME)
        output.check_room(unfinished, _nbytes(work.wanted))
        target = work.lay_out(unfinished)
        output.check_room(unfinished, output.missing_bytes(unfinished))
        output.reserve(unfinished)
        output.sync(unfinished)
        log.lay_out(target)
        return target
    output.check_room(unfinished, output.missing_bytes(unfinished))
    return Checkpoint(unfinished, work.source.shape, work.dtype, *log.holes)


def _copy(work: Work, target: Checkpoint, log: Journal, workers: int, progress: Progress) -> None:
    """Copy the tensors that are not there yet."""
    wanted = work.wanted
    before = {name: matrix for name, matrix in wanted.items() if name in log.written}
    if before:
        progress.say(f"Continuing: {len(before)} of {len(wanted)} tensors are written; they are read back first.")
        with progress.bar("Checking", _nbytes(before)) as advance:
            results = dict(checksums(target, before, workers, advance))
        before = {name: matrix for name, matrix in before.items() if results[name] == log.written[name]}
    rest = {name: matrix for name, matrix in wanted.items() if name not in before}
    with progress.bar("Converting", _nbytes(wanted), _nbytes(before)) as advance:
        for name, sha256 in transfer(work.source, target, rest, workers, advance):
            log.wrote(name, sha256)


def _nbytes(wanted: Mapping[str, Matrix]) -> int:
    return sum(matrix.nbytes for matrix in wanted.values())
