"""The journal of a conversion that is under way: what is converted, where it goes, and which tensors are written.

It lies in the unfinished folder, one JSON object a line: first the job, then, when the new files are laid out, their
holes, then every tensor when it is written. A killed conversion is resumed from it. What it says is written is read
back and compared before it is believed, because a machine that goes down may keep the line and lose the tensor.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ascend_patch.checkpoint.dtypes import dtype_name, dtype_named
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.stored import Checkpoint, Piece, StoredTensor

NAME = "conversion.journal"

Pieces = Mapping[str, Sequence[Piece]]


class Journal:
    """The journal in ``folder``, opened by :meth:`begin` or :meth:`resume` and locked until it is closed."""

    def __init__(self, folder: Path, flags: int):
        self._folder = folder
        self._file = os.open(folder / NAME, os.O_RDWR | os.O_APPEND | flags, 0o666)
        self.holes: tuple[Pieces, Pieces] | None = None
        """Pieces and fill of the new checkpoint; None before its files are laid out."""
        self.written: dict[str, str] = {}
        """Name -> sha256 of the tensors that are written."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise CheckpointError(f"{folder} is being written by another process. Let it finish.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and let other processes have it."""
        os.close(self._file)

    @classmethod
    def begin(cls, folder: Path, job: Mapping[str, Any]) -> "Journal":
        """A new journal in an existing folder."""
        journal = cls(folder, os.O_CREAT | os.O_EXCL)
        journal._append({"job": job})
        return journal

    @classmethod
    def resume(cls, folder: Path, job: Mapping[str, Any]) -> "Journal":
        """The journal of the same job, which was killed.

        Raises:
            CheckpointError: the folder has no journal, another job's journal, or another process writes it.
        """
        if not (folder / NAME).is_file():
            raise CheckpointError(
                f"{folder} exists, but is no unfinished conversion: it has no {NAME}. It is left as it is. "
                f"Remove it, or name another --save-dir."
            )
        journal = cls(folder, 0)
        try:
            journal._read(job)
        except BaseException:
            journal.close()
            raise
        return journal

    def lay_out(self, target: Checkpoint) -> None:
        """Record the holes of the new files, which must be on disk."""
        self.holes = (target.pieces, target.fill)
        self._append(
            {name: self._describe(pieces) for name, pieces in zip(("pieces", "fill"), self.holes, strict=True)}
        )

    def wrote(self, name: str, sha256: str) -> None:
        """Record that a tensor is written."""
        self.written[name] = sha256
        self._append({"tensor": name, "sha256": sha256})

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            append_line(self._file, entry)
        except OSError as error:
            raise CheckpointError(f"{self._folder / NAME} cannot be written: {error.strerror}.") from error

    def _read(self, job: Mapping[str, Any]) -> None:
        lines = whole_lines(self._folder / NAME, self._file)
        if not lines:
            self._append({"job": job})
            return
        try:
            entries = [json.loads(line) for line in lines]
            before = entries[0]["job"]
            if len(entries) > 1:
                self.holes = (self._restore(entries[1]["pieces"]), self._restore(entries[1]["fill"]))
            self.written = {entry["tensor"]: entry["sha256"] for entry in entries[2:]}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self._folder / NAME} is damaged. Remove {self._folder} and convert again."
            ) from error
        if changed := differences(before, json.loads(json.dumps(job))):
            raise CheckpointError(
                f"{self._folder} holds the beginning of another conversion: {'; '.join(changed[:5])}. Run that command "
                f"again to finish it, or remove the folder to start anew."
            )

    def _describe(self, tensors: Pieces) -> dict[str, list]:
        return {name: [self._describe_piece(piece) for piece in pieces] for name, pieces in tensors.items()}

    def _describe_piece(self, piece: Piece) -> list:
        tensor = piece.tensor
        file = str(tensor.file.relative_to(self._folder))
        return [file, tensor.offset, tensor.shape, dtype_name(tensor.dtype), piece.rows, piece.cols, piece.at]

    def _restore(self, tensors: Mapping[str, list]) -> dict[str, list[Piece]]:
        return {name: [self._restore_piece(*piece) for piece in pieces] for name, pieces in tensors.items()}

    def _restore_piece(
        self, file: str, offset: int, shape: list, dtype: str, rows: list, cols: list, at: list
    ) -> Piece:
        tensor = StoredTensor(self._folder / file, offset, tuple(shape), dtype_named(dtype))
        return Piece(tensor, (rows[0], rows[1]), (cols[0], cols[1]), (at[0], at[1]))


def append_line(file: int, entry: Mapping[str, Any]) -> None:
    """Write a JSON object as the next line of a journal that is open for appending."""
    line = json.dumps(entry).encode() + b"\n"
    while line:
        line = line[os.write(file, line) :]


def whole_lines(path: Path, file: int) -> list[bytes]:
    """The lines of a journal, ``file`` being its descriptor; one that was cut off with its process is removed."""
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        os.truncate(file, sum(map(len, lines[:-1])))
        del lines[-1]
    return lines


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON objects, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [found for key in keys for found in differences(before.get(key), now.get(key), f"{name} {key}".strip())]
    return [] if before == now else [f"{name} was {before} and is {now}"]
