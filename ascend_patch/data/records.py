"""Records of files, as chunks: cut from a file in one process, parsed in another.

Where a file is cut depends on nothing but its content, so that an interrupted run can go on behind the last chunk that
it finished, and the documents are the same for any number of workers.

What a record is: a line of .jsonl; an element of the array in a .json file, or each of the objects in it; a row of
.parquet; of .txt a line or what ``--txt-split`` says, as ``{"text": ...}``. :mod:`~ascend_patch.data.formats` cuts.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import Record

Item = tuple[int, Record | DataError]
"""A record, or what is wrong with it, and the number of its line or row in the file, from 1."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one file, not parsed yet.

    Attributes:
        source: the name of the file.
        first: number of the first line or row.
        done: bytes of the file, as it lies on the disk, that are read when the chunk is.
    """

    source: str
    first: int
    done: int

    def items(self) -> Iterator[Item]:
        """Parse."""
        raise NotImplementedError

    def place(self, number: int) -> str:
        """How messages name the record with ``number``."""
        return f"{self.source}, line {number}"


@dataclass(frozen=True)
class Unusable(Chunk):
    """One record that was not even read."""

    message: str

    def items(self) -> Iterator[Item]:
        """The message."""
        yield self.first, DataError(self.message)


@dataclass(frozen=True)
class JsonLines(Chunk):
    """Whole lines of a .jsonl file. Empty lines are no records."""

    data: bytes

    def items(self) -> Iterator[Item]:
        """An object a line."""
        for number, line in enumerate(self.data.split(b"\n"), self.first):
            if line and not line.isspace():
                yield number, parse(line)


@dataclass(frozen=True)
class JsonValues(Chunk):
    """Values of a .json file, each with the line where it begins."""

    values: Sequence[tuple[int, str]]

    def items(self) -> Iterator[Item]:
        """An object a value."""
        for number, value in self.values:
            yield number, parse(value)


@dataclass(frozen=True)
class TextLines(Chunk):
    """Whole lines of a .txt file. Blank lines are no records."""

    data: bytes

    def items(self) -> Iterator[Item]:
        """``{"text": ...}`` for each line."""
        for number, line in enumerate(self.data.split(b"\n"), self.first):
            if line and not line.isspace():
                yield number, _text(line.removesuffix(b"\r"), number)


@dataclass(frozen=True)
class Texts(Chunk):
    """Documents of several lines of a .txt file, each with the line where it begins."""

    texts: Sequence[tuple[int, bytes]]

    def items(self) -> Iterator[Item]:
        """``{"text": ...}`` for each document."""
        for number, text in self.texts:
            yield number, _text(text, number)


@dataclass(frozen=True)
class Rows(Chunk):
    """Rows of a .parquet file, as an Arrow stream."""

    data: bytes

    def items(self) -> Iterator[Item]:
        """An object a row."""
        import pyarrow

        with pyarrow.ipc.open_stream(self.data) as stream:
            yield from enumerate(stream.read_all().to_pylist(), self.first)

    def place(self, number: int) -> str:
        """Rows instead of lines."""
        return f"{self.source}, row {number}"


def kind_of(value: Any) -> str:
    """What JSON calls the type of ``value``, with its article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def parse(value: bytes | str) -> Record | DataError:
    """The record that a JSON text is, or what is wrong with it."""
    try:
        record = json.loads(value.decode("utf-8-sig") if isinstance(value, bytes) else value)
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    except json.JSONDecodeError as error:
        return DataError(f"not JSON ({error.msg} at column {error.colno}).{_hint(value)}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        return DataError(f"JSON that cannot be read ({error}).")
    if not isinstance(record, dict):
        return DataError(f"{kind_of(record)}, but a record is a JSON object.{_hint(value)}")
    return record


def _hint(value: bytes | str) -> str:
    if value.strip()[:1] not in (b"[", "["):
        return ""
    return " If the file is one JSON array, name it .json or add --input-format json."


def _text(text: bytes, number: int) -> Record | DataError:
    try:
        return {"text": text.decode("utf-8-sig" if number == 1 else "utf-8")}
    except UnicodeDecodeError as error:
        return _not_utf8(error)


def _not_utf8(error: UnicodeDecodeError) -> DataError:
    return DataError(f"not UTF-8 ({error.reason} at byte {error.start}). Convert it first.")
