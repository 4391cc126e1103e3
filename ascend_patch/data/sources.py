"""The files that are read: found by name, pattern or ``-``, opened, and decompressed on the way."""

import glob
import gzip
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from ascend_patch.data.errors import DataError


class Format(StrEnum):
    """How records lie in a file."""

    JSONL = "jsonl"
    JSON = "json"
    PARQUET = "parquet"
    TXT = "txt"


FORMATS = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSON,
    ".parquet": Format.PARQUET,
    ".txt": Format.TXT,
}
COMPRESSIONS = (".gz", ".zst")


@dataclass(frozen=True)
class Source:
    """One file, or standard input.

    Attributes:
        name: as messages call it.
        path: None for standard input.
        compression: ``.gz``, ``.zst`` or nothing.
        size: in bytes as it lies on the disk; None if it is no regular file.
    """

    name: str
    path: Path | None
    format: Format
    compression: str
    size: int | None

    @contextmanager
    def open(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """The content, decompressed, and the file itself, whose position says how far reading has come.

        Raises:
            DataError: the file cannot be opened, or what is read from it in the ``with`` is damaged.
        """
        try:
            raw = sys.stdin.buffer if self.path is None else self.path.open("rb")
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror}.") from error
        try:
            yield self._decompressed(raw), raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self.name} is damaged or no .gz file ({error}). Fetch it again.") from error
        except OSError as error:
            if self.compression and error.errno is None:  # as pyarrow raises it
                raise DataError(f"{self.name} is damaged or no .zst file ({error}). Fetch it again.") from error
            raise DataError(f"{self.name} cannot be read: {error.strerror or error}.") from error
        finally:
            if self.path is not None:
                raw.close()

    def _decompressed(self, raw: BinaryIO) -> BinaryIO:
        if self.compression == ".gz":
            return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
        if self.compression == ".zst":
            import pyarrow

            return pyarrow.CompressedInputStream(raw, "zstd")
        return raw


def find_sources(names: Sequence[str], form: Format | None = None) -> list[Source]:
    """The files that ``names`` mean, in the order of the names; those of a pattern in the order of their names.

    Args:
        names: paths, patterns such as ``data/**/*.jsonl.zst``, or ``-``.
        form: the format of all of them; without it the end of each name tells, and standard input is jsonl.

    Raises:
        DataError: a name means no file, a folder, or a file of unknown format, or a file is named twice.
    """
    sources = [_source(path, form) for name in names for path in _expand(name)]
    seen = set[str]()
    for source in sources:
        identity = "-" if source.path is None else os.path.realpath(source.path)
        if identity in seen:
            raise DataError(f"{source.name} is named twice by --input; its documents would be there twice.")
        seen.add(identity)
    return sources


def _expand(name: str) -> list[str]:
    if name == "-" or os.path.exists(name) or not glob.has_magic(name):
        return [name]
    found = sorted(path for path in glob.glob(name, recursive=True) if not os.path.isdir(path))
    if not found:
        raise DataError(f"--input {name}: no file matches this pattern.")
    return found


def _source(name: str, form: Format | None) -> Source:
    if name == "-":
        return Source("standard input", None, form or Format.JSONL, "", None)
    path = Path(name)
    if path.is_dir():
        raise DataError(f"--input {name} is a folder. Name its files, for example '{path}/*.jsonl'.")
    if not path.exists():
        raise DataError(f"--input {name} cannot be read: No such file.")
    stem, suffix = os.path.splitext(path.name.lower())
    compression = suffix if suffix in COMPRESSIONS else ""
    if compression:
        suffix = os.path.splitext(stem)[1]
    if form is None and suffix not in FORMATS:
        raise DataError(
            f"--input {name}: its name does not tell the format. Known are {', '.join(FORMATS)}, each also with "
            f"{' or '.join(COMPRESSIONS)} behind it. Name the format with --input-format."
        )
    size = path.stat().st_size if path.is_file() else None
    return Source(name, path, form or FORMATS[suffix], compression, size)
