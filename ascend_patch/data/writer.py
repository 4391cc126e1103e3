"""Megatron's indexed datasets, written so that an interrupted run can go on, and never seen half-written.

Everything grows in a folder beside the output. ``state.json`` there says how much of each file is known to be on the
disk; what lies behind is cut off when a later run goes on. At the end the files are renamed into their place.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import Documents, Encoded
from ascend_patch.data.index import write_index

STATE = "state.json"


@dataclass(frozen=True)
class Dataset:
    """What was written. ``prefix`` is what ``--data-path`` takes."""

    prefix: Path
    documents: int
    tokens: int


@dataclass(frozen=True)
class Output:
    """Where a column goes: ``prefix``.bin and .idx."""

    prefix: Path
    dtype: np.dtype


@dataclass
class Sizes:
    """Of one column."""

    tokens: int = 0
    sequences: int = 0
    documents: int = 0


@dataclass
class State:
    """How far a run has come.

    Attributes:
        settings: what decides about the content; a run goes on only with equal ones.
        chunks: of the input, finished.
        records, skipped: in these chunks; the second were left out.
        notes: what handlers counted.
        complete: all is written, and only has to be put into its place.
    """

    settings: Mapping[str, Any]
    columns: dict[str, Sizes]
    chunks: int = 0
    records: int = 0
    skipped: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    complete: bool = False

    @property
    def tokens(self) -> int:
        """Of the first column."""
        return next(iter(self.columns.values())).tokens

    @property
    def documents(self) -> int:
        """Of the first column."""
        return next(iter(self.columns.values())).documents


class DatasetWriter:
    """Writes one indexed dataset for each column; a context manager.

    An error inside of the ``with`` keeps what is done if :meth:`save` was called before, and else leaves nothing.

    Args:
        folder: for unfinished files, on the file system of the outputs. If a run with equal ``settings`` was
            interrupted there, this one goes on: see :attr:`state`.
        outputs: by the name of the column.
        settings: what decides about the content, as JSON has it.
        restart: throw away what is there.

    Raises:
        DataError: another process writes there, or a run with other settings was interrupted there.
    """

    def __init__(
        self,
        folder: Path,
        outputs: Mapping[str, Output],
        settings: Mapping[str, Any] | None = None,
        restart: bool = False,
    ) -> None:
        self._folder = folder
        self._outputs = outputs
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        if restart:
            (folder / STATE).unlink(missing_ok=True)
        found = _read_state(folder)
        settings = json.loads(json.dumps(settings or {}))
        self.state = found or State(settings, {name: Sizes() for name in outputs})
        self._saved = found is not None
        if found is not None and found.settings != settings:
            self._lock.close()
            changed = ", ".join(sorted(_changed(found.settings, settings)))
            raise DataError(
                f"{folder} holds an interrupted run with other settings ({changed}). Go on with the settings of that "
                "run, or add --restart to throw it away."
            )
        self._columns = dict[str, _Column]()
        if not self.state.complete:
            for name, output in outputs.items():
                self._columns[name] = _Column(folder / name, output.dtype, self.state.columns[name])

    def append(self, encoded: Encoded, records: int = 0, skipped: int = 0) -> None:
        """Add what became of one chunk of the input."""
        for name, column in self._columns.items():
            column.append(encoded.columns[name])
        self.state.chunks += 1
        self.state.records += records
        self.state.skipped += skipped
        for note, count in encoded.notes.items():
            self.state.notes[note] = self.state.notes.get(note, 0) + count

    def save(self) -> None:
        """Make sure that what was appended outlives this process."""
        for column in self._columns.values():
            column.flush()
        temporary = self._folder / "state.tmp"
        temporary.write_text(json.dumps(asdict(self.state)))
        _sync(temporary)
        os.replace(temporary, self._folder / STATE)
        self._saved = True

    def finish(self) -> list[Dataset]:
        """Put the datasets into their place.

        Raises:
            DataError: there is not a single document.
        """
        if self.state.documents == 0:
            raise DataError("The input holds no documents.")
        if not self.state.complete:
            for column in self._columns.values():
                column.finish()
            self._columns = {}
            self.state.complete = True
            self.save()
        for name, output in self._outputs.items():
            _publish(self._folder / name, output.prefix)
        shutil.rmtree(self._folder)
        return [
            Dataset(output.prefix, self.state.columns[name].documents, self.state.columns[name].tokens)
            for name, output in self._outputs.items()
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self._saved and not isinstance(error, OSError):
                self.save()
            for column in self._columns.values():
                column.close()
        finally:
            if error is not None and not self._saved:
                shutil.rmtree(self._folder)
            self._lock.close()


class _Column:
    """The files of one dataset in the making: ids, and the numbers that the index is made of."""

    def __init__(self, stem: Path, dtype: np.dtype, sizes: Sizes) -> None:
        self._stem = stem
        self._dtype = dtype
        self._sizes = sizes
        self._ids = _open(stem.with_name(f"{stem.name}.bin"), sizes.tokens * dtype.itemsize)
        self._lengths = _open(stem.with_name(f"{stem.name}.lengths"), sizes.sequences * 4)
        self._documents = _open(stem.with_name(f"{stem.name}.documents"), sizes.documents * 4)

    def append(self, documents: Documents) -> None:
        """Add documents."""
        if documents.tokens.dtype != self._dtype:
            raise TypeError(f"The ids are {documents.tokens.dtype}, those of the dataset {self._dtype}.")
        self._ids.write(documents.tokens.data)
        self._lengths.write(documents.sequence_lengths.astype(np.int32, copy=False).data)
        self._documents.write(documents.document_sequences.astype(np.int32, copy=False).data)
        self._sizes.tokens += documents.tokens.size
        self._sizes.sequences += documents.sequence_lengths.size
        self._sizes.documents += documents.document_sequences.size

    def flush(self) -> None:
        """To the disk."""
        for file in (self._ids, self._lengths, self._documents):
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Write the index."""
        self.flush()
        self.close()
        index = self._stem.with_name(f"{self._stem.name}.idx")
        write_index(index, self._dtype, Path(self._lengths.name), Path(self._documents.name))
        _sync(index)

    def close(self) -> None:
        """Close the files."""
        for file in (self._ids, self._lengths, self._documents):
            file.close()


def _open(path: Path, size: int) -> BinaryIO:
    """To append behind the first ``size`` bytes."""
    file = path.open("ab")
    if file.tell() < size:
        file.close()
        raise DataError(f"{path} is shorter than the interrupted run left it. Add --restart to throw that run away.")
    file.truncate(size)
    return file


def _publish(stem: Path, prefix: Path) -> None:
    """Rename .bin and .idx; again after an interruption. An .idx never stands beside a .bin it does not belong to."""
    ids, index = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".bin", ".idx"))
    final_ids, final_index = (prefix.with_name(f"{prefix.name}{suffix}") for suffix in (".bin", ".idx"))
    if ids.exists():
        final_index.unlink(missing_ok=True)
        os.replace(ids, final_ids)
    if index.exists():
        os.replace(index, final_index)
    _sync(prefix.parent)


def _read_state(folder: Path) -> State | None:
    path = folder / STATE
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    columns = {name: Sizes(**sizes) for name, sizes in content.pop("columns").items()}
    return State(columns=columns, **content)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}


def _lock(folder: Path) -> BinaryIO:
    file = (folder / "lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            file.close()
            raise DataError(
                f"Another process is writing into {folder}. Wait for it, or name another output."
            ) from error
        # A file system without locks; nothing else is lost.
    return file


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
