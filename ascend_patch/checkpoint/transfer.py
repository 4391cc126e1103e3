"""Copies the weights of one checkpoint into another, tensor by tensor, in several threads.

Threads and not processes: reading, writing, hashing and torch's copies all leave Python's lock to others.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from ascend_patch.checkpoint.blocks import BlockReader, BlockWriter, Files, Matrix
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.padding import MeanRow
from ascend_patch.checkpoint.stored import Checkpoint, Piece

Advance = Callable[[int], None]
"""Told the bytes of each block when it is done."""


class _Stopped(Exception):
    """Another thread failed; nobody waits for this one's result."""


def transfer(
    source: Checkpoint, target: Checkpoint, wanted: Mapping[str, Matrix], workers: int, advance: Advance
) -> Iterator[tuple[str, str]]:
    """Copy the tensors ``wanted`` into the holes of ``target``.

    Yields:
        The name and the sha256 of each tensor that has been written, in the order in which they are finished.

    Raises:
        CheckpointError: what the first thread that failed met; the others are stopped.
    """

    def copy(name: str, advance: Advance) -> str:
        return copy_tensor(
            wanted[name], source.pieces[name], target.pieces[name], target.fill.get(name, ()), advance=advance
        )

    return in_threads(copy, list(wanted), workers, advance)


def checksums(
    checkpoint: Checkpoint, wanted: Mapping[str, Matrix], workers: int, advance: Advance
) -> Iterator[tuple[str, str | CheckpointError]]:
    """Read tensors back, with the padding that belongs to them.

    Yields:
        The name of each tensor and its sha256, or what is wrong with it: it cannot be read, its replicas differ, or its
        padding is not what was written there.
    """

    def read(name: str, advance: Advance) -> str | CheckpointError:
        try:
            return read_tensor(wanted[name], checkpoint.pieces[name], checkpoint.fill.get(name, ()), advance=advance)
        except CheckpointError as error:
            return error

    return in_threads(read, list(wanted), workers, advance)


def in_threads[Result](
    job: Callable[[str, Advance], Result], names: Sequence[str], workers: int, advance: Advance
) -> Iterator[tuple[str, Result]]:
    """Call ``job(name, advance)`` for every name; an error or an interrupt stops all threads at their next block."""
    stop, lock = threading.Event(), threading.Lock()

    def advance_or_stop(nbytes: int) -> None:
        if stop.is_set():
            raise _Stopped
        with lock:
            advance(nbytes)

    with ThreadPoolExecutor(workers, thread_name_prefix="checkpoint") as pool:
        try:
            jobs = {pool.submit(job, name, advance_or_stop): name for name in names}
            for done in as_completed(jobs):
                yield jobs[done], done.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def copy_tensor(
    matrix: Matrix, source: Sequence[Piece], target: Sequence[Piece], fill: Sequence[Piece] = (), *, advance: Advance
) -> str:
    """Copy one tensor, and write its mean row to the rows that the source does not have.

    Args:
        matrix: the tensor as it is written.
        source: its pieces, of any of the dtypes of weights.
        target: the pieces to write.
        fill: pieces of rows after the last, such as vocabulary padding.
        advance: told the bytes of each block.

    Returns:
        The sha256 of the tensor's bytes in canonical order, as they are written.

    Raises:
        CheckpointError: the pieces do not make up the tensor, replicas differ, a number does not fit the dtype, or a
            file cannot be read or written. Names the tensor and the file.
    """
    digest, mean = hashlib.sha256(), MeanRow(matrix)
    with Files(matrix.name, os.O_RDONLY) as inputs, Files(matrix.name, os.O_WRONLY) as outputs:
        reader, writer = BlockReader(matrix, source, inputs), BlockWriter(matrix, target, outputs)
        for start, block in reader:
            digest.update(reader.buffer.memory(block))
            writer.write(start, block, reader.buffer)
            if fill:
                mean.add(block)
            advance(block.nbytes)
        for piece in fill:
            mean.write(piece, outputs)
    return digest.hexdigest()


def read_tensor(matrix: Matrix, pieces: Sequence[Piece], fill: Sequence[Piece] = (), *, advance: Advance) -> str:
    """The sha256 of a tensor that is stored; ``fill`` must hold its mean row.

    Raises:
        CheckpointError: the pieces do not make up the tensor, replicas or the padding differ, or a file cannot be read.
    """
    digest, mean = hashlib.sha256(), MeanRow(matrix)
    with Files(matrix.name, os.O_RDONLY) as files:
        reader = BlockReader(matrix, pieces, files)
        for _, block in reader:
            digest.update(reader.buffer.memory(block))
            if fill:
                mean.add(block)
            advance(block.nbytes)
        for piece in fill:
            mean.check(piece, files)
    return digest.hexdigest()
