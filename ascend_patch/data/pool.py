"""Worker processes: chunks of raw records in, token ids out, in order."""

import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, parent_process

from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import Encoded, Handler
from ascend_patch.data.records import Chunk

AHEAD = 3  # chunks for each worker that have been read and not been written


@dataclass(frozen=True)
class Result:
    """What became of a chunk.

    Attributes:
        source: the name of the file.
        done: bytes of the file that are read.
        records: in the chunk, bad ones included.
        bad: place and message of each record that was left out.
    """

    source: str
    done: int
    records: int
    encoded: Encoded
    bad: tuple[tuple[str, str], ...]


def encode_chunks(chunks: Iterable[Chunk], handler: Handler, workers: int) -> Generator[Result]:
    """The results of all chunks, in their order.

    Args:
        workers: processes; with one, the work is done in this process.

    Raises:
        DataError: a file cannot be read, after all results of what was read before; or a worker died.
    """
    if workers == 1:
        yield from (encode_chunk(handler, chunk) for chunk in chunks)
        return
    iterator = iter(chunks)
    # Encoded here, so that every worker begins with the words of the first chunk in its table.
    yield from (encode_chunk(handler, chunk) for chunk in islice(iterator, 1))
    pending: deque[Future[Result]] = deque()
    failure = None
    # Forked, so that a worker has the tokenizer at once; nothing here has started a thread yet.
    pool = ProcessPoolExecutor(workers, get_context("fork"), _start_worker, (handler,))
    try:
        while failure is None:
            try:
                pending.append(pool.submit(_encode_in_worker, next(iterator)))
            except StopIteration:
                break
            except DataError as error:
                failure = error
            if len(pending) >= AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process died. If the system killed it for want of memory (`dmesg` says so), use fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    if failure is not None:
        raise failure


def encode_chunk(handler: Handler, chunk: Chunk) -> Result:
    """Parse, check and tokenize one chunk."""
    prepared, bad = [], []
    for number, record in chunk.items():
        try:
            if isinstance(record, DataError):
                raise record
            prepared.append(handler.prepare(record))
        except DataError as error:
            bad.append((chunk.place(number), str(error)))
    return Result(chunk.source, chunk.done, len(prepared) + len(bad), handler.encode(prepared), tuple(bad))


_handler: Handler


def _start_worker(handler: Handler) -> None:
    global _handler
    _handler = handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(chunk: Chunk) -> Result:
    return encode_chunk(_handler, chunk)
