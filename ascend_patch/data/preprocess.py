"""The whole way: files in, indexed datasets out."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import batched, chain, islice
from pathlib import Path
from typing import Any

from ascend_patch.data.errors import DataError
from ascend_patch.data.formats import LONGEST_RECORD, read_chunks, read_records
from ascend_patch.data.handlers import Handler, HandlerOptions
from ascend_patch.data.lines import TxtSplit
from ascend_patch.data.pool import Result, encode_chunks
from ascend_patch.data.progress import Progress
from ascend_patch.data.records import Chunk
from ascend_patch.data.sources import Source, find_sources
from ascend_patch.data.text import TextHandler, texts_of
from ascend_patch.data.tokenize import Tokenizer
from ascend_patch.data.writer import Dataset, DatasetWriter, Output

SAVE_SECONDS = 15.0  # of work that an interruption may cost
MOST_NAMED = 20  # bad records; the others are only counted
DOCUMENTS_PER_BATCH = 256


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        skipped: bad records that were left out.
        notes: what the handler counted.
    """

    datasets: Sequence[Dataset]
    records: int
    skipped: int
    notes: Mapping[str, int]


def preprocess(
    sources: Sequence[Source],
    handler: Handler,
    prefix: Path,
    settings: Mapping[str, Any],
    *,
    workers: int = 1,
    split: TxtSplit = TxtSplit.LINE,
    longest: int = LONGEST_RECORD,
    skip_bad: bool = False,
    log_interval: int = 1000,
    restart: bool = False,
) -> Summary:
    """Write ``prefix``_{column}_document.bin and .idx for each column of ``handler``, complete or not there.

    Args:
        settings: what else decides about the content: names and values of the handler's and the tokenizer's options.
            An interrupted run goes on if these and the sources are what they were.
        split: what is a document of a .txt file.
        longest: bytes of a record.
        skip_bad: leave out records that cannot be used, and count them.
        log_interval: without a terminal, report after this many documents.
        restart: throw an interrupted run away.

    Raises:
        DataError: a file, or without ``skip_bad`` a record, cannot be used; there is no document at all; the output
            cannot be written.
    """
    settings = dict(settings) | {
        "--input": [_identity(source) for source in sources],
        "--txt-split": split,
        "--max-record-mib": longest >> 20,
    }
    outputs = {
        column: Output(prefix.with_name(f"{prefix.name}_{column}_document"), dtype)
        for column, dtype in handler.columns.items()
    }
    folder = unfinished_folder(prefix)
    try:
        with DatasetWriter(folder, outputs, settings, restart) as writer:
            if not writer.state.complete:
                chunks = chain.from_iterable(read_chunks(source, split, longest) for source in sources)
                _Run(sources, writer, skip_bad, log_interval).write(chunks, handler, workers)
            state = writer.state
            return Summary(writer.finish(), state.records, state.skipped, state.notes)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be written: {error.strerror}.") from error


def unfinished_folder(prefix: Path) -> Path:
    """Where a run keeps what it has, until it is complete."""
    return prefix.with_name(f"{prefix.name}.unfinished")


class _Run:
    """Chunks of the sources on their way into a writer."""

    def __init__(self, sources: Sequence[Source], writer: DatasetWriter, skip_bad: bool, log_interval: int) -> None:
        self._writer = writer
        self._skip_bad = skip_bad
        self._log_interval = log_interval
        self._begins: dict[str, int] = {}
        self._total: int | None = 0
        for source in sources:
            self._begins[source.name] = self._total or 0
            self._total = None if self._total is None or source.size is None else self._total + source.size

    def write(self, chunks: Iterator[Chunk], handler: Handler, workers: int) -> None:
        """All of them but those that an interrupted run has written."""
        state = self._writer.state
        passed = deque(islice(chunks, state.chunks), maxlen=1)
        done = self._begins[passed[0].source] + passed[0].done if passed else 0
        with Progress(self._total, self._log_interval, done, state.documents, state.tokens) as progress:
            if state.chunks:
                progress.say(f"Going on behind the {state.records:,} records that an interrupted run has finished.")
            saved = time.monotonic()
            with closing(encode_chunks(chunks, handler, workers)) as results:
                for result in results:
                    self._report(result, progress)
                    self._writer.append(result.encoded, result.records, len(result.bad))
                    if time.monotonic() - saved >= SAVE_SECONDS:
                        self._writer.save()
                        saved = time.monotonic()
                    progress.update(self._begins[result.source] + result.done, state.documents, state.tokens)

    def _report(self, result: Result, progress: Progress) -> None:
        skipped = self._writer.state.skipped
        for number, (place, message) in enumerate(result.bad, skipped):
            if not self._skip_bad:
                raise DataError(f"{place}: {message} (With --on-error skip such records are left out and counted.)")
            if number < MOST_NAMED:
                progress.say(f"left out: {place}: {message}")


def _identity(source: Source) -> list[Any]:
    """What tells whether a file is still the same; of a stream nothing does, so it never is."""
    if source.path is None or source.size is None:
        return [source.name, time.time_ns()]
    return [source.name, source.size, source.path.stat().st_mtime_ns]


def read_documents(path: Path, key: str = "text") -> Iterator[str]:
    """The texts under ``key`` in the records of a file that are not blank.

    Raises:
        DataError: the file, or a record of it, cannot be used.
    """
    for place, record in read_records(find_sources([str(path)])):
        try:
            yield from (text for text in texts_of(record, key) if text.strip())
        except DataError as error:
            raise DataError(f"{place}: {error}") from error


def write_dataset(documents: Iterable[str], tokenizer: Tokenizer, prefix: Path, append_eod: bool = True) -> Dataset:
    """Tokenize ``documents`` and write ``prefix``.bin and .idx, both complete or not there.

    Raises:
        DataError: there is not a single document.
    """
    handler = TextHandler(tokenizer, HandlerOptions(append_eod=append_eod))
    with DatasetWriter(unfinished_folder(prefix), {"text": Output(prefix, tokenizer.dtype)}) as writer:
        for batch in batched(documents, DOCUMENTS_PER_BATCH):
            writer.append(handler.encode([[[text]] for text in batch]))
        return writer.finish()[0]
