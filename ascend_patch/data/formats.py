"""Files into chunks of whole records: .jsonl, .json, .parquet, .txt."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import Record
from ascend_patch.data.json_values import read_values
from ascend_patch.data.lines import Readable, TxtSplit, join_documents, read_lines
from ascend_patch.data.records import Chunk, JsonLines, JsonValues, Rows, TextLines, Texts, Unusable, parse
from ascend_patch.data.sources import Format, Source

CHUNK_BYTES = 1 << 20
LONGEST_RECORD = 256 << 20


def read_chunks(source: Source, split: TxtSplit = TxtSplit.LINE, longest: int = LONGEST_RECORD) -> Iterator[Chunk]:
    """The chunks of one file.

    Args:
        longest: bytes of a record; what is longer becomes an :class:`Unusable` and is not held in memory. Rows of
            .parquet are not limited.

    Raises:
        DataError: the file, or the rest of it, cannot be read.
    """
    with source.open() as (content, raw):
        reader = _Reader(source, raw, longest)
        if source.format is Format.PARQUET:
            yield from reader.parquet(content)
        elif source.format is Format.JSON:
            yield from reader.json(content)
        elif source.format is Format.TXT:
            yield from reader.txt(content, split)
        else:
            yield from reader.jsonl(content)


def read_records(sources: Iterable[Source], split: TxtSplit = TxtSplit.LINE) -> Iterator[tuple[str, Record]]:
    """Every record with its place, one after the other.

    Raises:
        DataError: a record or a file cannot be read.
    """
    for source in sources:
        for chunk in read_chunks(source, split):
            for number, record in chunk.items():
                if isinstance(record, DataError):
                    raise DataError(f"{chunk.place(number)}: {record}")
                yield chunk.place(number), record


class _Reader:
    """One file on its way into chunks."""

    def __init__(self, source: Source, raw: BinaryIO, longest: int) -> None:
        self._source = source
        self._raw = raw
        self._longest = longest

    def _at(self, first: int) -> tuple[str, int, int]:
        """The fields that every chunk has."""
        return self._source.name, first, 0 if self._source.size is None else self._raw.tell()

    def _unusable(self, first: int) -> Unusable:
        limit = f"{self._longest >> 20} MiB"
        return Unusable(*self._at(first), f"longer than {limit}. Split it into documents, or raise --max-record-mib.")

    def jsonl(self, content: Readable) -> Iterator[Chunk]:
        """Lines are records."""
        for number, lines in read_lines(content, CHUNK_BYTES, self._longest):
            yield self._unusable(number) if lines is None else JsonLines(*self._at(number), lines)

    def txt(self, content: Readable, split: TxtSplit) -> Iterator[Chunk]:
        """Lines are documents, or several lines together are one."""
        blocks = read_lines(content, CHUNK_BYTES, self._longest)
        if split is TxtSplit.LINE:
            for number, lines in blocks:
                yield self._unusable(number) if lines is None else TextLines(*self._at(number), lines)
            return
        batch, size = list[tuple[int, bytes]](), 0
        for number, text in join_documents(blocks, split, self._longest):
            if text is not None:
                batch.append((number, text))
                size += len(text)
            if batch and (text is None or size >= CHUNK_BYTES):
                yield Texts(*self._at(batch[0][0]), batch)
                batch, size = [], 0
            if text is None:
                yield self._unusable(number)
        if batch:
            yield Texts(*self._at(batch[0][0]), batch)

    def json(self, content: Readable) -> Iterator[Chunk]:
        """Elements of an array or single values; or lines, if the first line is an object of its own."""
        head = content.read(CHUNK_BYTES)
        whole = _Chained(head, content)
        if not isinstance(parse(head.lstrip().partition(b"\n")[0]), DataError):
            yield from self.jsonl(whole)
            return
        batch, size = list[tuple[int, str]](), 0
        for number, value in read_values(whole, self._source.name, CHUNK_BYTES, self._longest):
            batch.append((number, value))
            size += len(value)
            if size >= CHUNK_BYTES:
                yield JsonValues(*self._at(batch[0][0]), batch)
                batch, size = [], 0
        if batch:
            yield JsonValues(*self._at(batch[0][0]), batch)

    def parquet(self, content: BinaryIO) -> Iterator[Chunk]:
        """Rows are records."""
        import pyarrow
        from pyarrow import ipc, parquet

        with tempfile.TemporaryFile() as copy:
            file = content
            if self._source.compression or self._source.size is None:  # it is read from its end
                shutil.copyfileobj(content, copy)
                file = copy
            try:
                table = parquet.ParquetFile(file)
                rows = max(table.metadata.num_rows, 1)
                groups = range(table.metadata.num_row_groups)
                size = sum(table.metadata.row_group(group).total_byte_size for group in groups)
                first = 1
                for batch in table.iter_batches(max(1, CHUNK_BYTES * rows // max(size, 1))):
                    sink = pyarrow.BufferOutputStream()
                    with ipc.new_stream(sink, batch.schema) as stream:
                        stream.write_batch(batch)
                    done = (self._source.size or 0) * (first + len(batch) - 1) // rows
                    yield Rows(self._source.name, first, done, sink.getvalue().to_pybytes())
                    first += len(batch)
            except pyarrow.ArrowException as error:
                raise DataError(f"{self._source.name} is damaged or no .parquet file ({error}).") from error


class _Chained:
    """A stream, of which ``head`` has been read already."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        """The head whole, then what follows."""
        head, self._head = self._head, b""
        return head or self._rest.read(size)
