"""Results come in order, errors after what was read before them, and no worker is left behind."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import Documents, Encoded
from ascend_patch.data.pool import encode_chunks
from ascend_patch.data.records import JsonLines

INT32 = np.dtype(np.int32)


class Lengths:
    """A document of one id, the length of the text."""

    columns = {"text": INT32}

    def prepare(self, record):
        if record.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if "text" not in record:
            raise DataError("no text")
        time.sleep(record.get("sleep", 0))
        return len(record["text"])

    def encode(self, prepared):
        return Encoded({"text": Documents.of([[length] for length in prepared], INT32)})


def chunks(*lines: str):
    for number, line in enumerate(lines, 1):
        yield JsonLines("my.jsonl", number, number * 10, line.encode())


@pytest.mark.parametrize("workers", [1, 2])
def test_order_and_bad_records(workers):
    lines = ['{"text": "abc", "sleep": 0.3}', '{"text": ""}', "{}", "nonsense", '{"text": "ab"}\n{"text": "abcd"}']
    results = list(encode_chunks(chunks(*lines), Lengths(), workers))
    assert [result.encoded.columns["text"].tokens.tolist() for result in results] == [[3], [0], [], [], [2, 4]]
    assert [result.records for result in results] == [1, 1, 1, 1, 2]
    assert results[2].bad == (("my.jsonl, line 3", "no text"),)
    assert results[3].bad[0][1].startswith("not JSON")
    assert (results[4].source, results[4].done) == ("my.jsonl", 50)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_ends_in_an_error(workers):
    def damaged():
        yield from chunks('{"text": "a"}', '{"text": "ab"}')
        raise DataError("damaged")

    got = []
    with pytest.raises(DataError, match="damaged"):
        for result in encode_chunks(damaged(), Lengths(), workers):
            got.append(result.encoded.columns["text"].tokens.tolist())
    assert got == [[1], [2]]


def test_only_so_much_is_read_ahead():
    read = []

    def counted():
        for number in range(100):
            read.append(number)
            yield from chunks('{"text": "a"}')

    results = encode_chunks(counted(), Lengths(), 2)
    next(results)
    assert len(read) == 1
    next(results)
    assert len(read) <= 8
    results.close()


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_worker_that_dies_is_an_error():
    before = children()
    with pytest.raises(DataError, match="A worker process died. .* fewer --workers"):
        list(encode_chunks(chunks('{"text": "a"}', '{"die": true}', '{"text": "a"}'), Lengths(), 2))
    assert children() <= before


def test_workers_end_with_a_killed_parent():
    script = (
        "import time\n"
        "from tests.unit_tests.data.test_pool import Lengths, chunks\n"
        "from ascend_patch.data.pool import encode_chunks\n"
        'results = encode_chunks(chunks(*[\'{"text": "a"}\'] * 50), Lengths(), 3)\n'
        "next(results), next(results)\n"  # the first is made without workers
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) == 3
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert alive == []
