"""Copying canonical tensors between rectangles in files: bits, dtypes, replicas, holes, padding, threads."""

import errno
import hashlib
import os
import random
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint import blocks
from ascend_patch.checkpoint.blocks import Matrix
from ascend_patch.checkpoint.dtypes import DTYPES
from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.stored import Piece, StoredTensor
from ascend_patch.checkpoint.transfer import copy_tensor, in_threads, read_tensor
from tests.unit_tests.checkpoint.rectangles import any_bits, bits, grid, hole, load, raw, store

NAME = "model.layers.3.self_attn.o_proj.weight"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch) -> None:
    """Blocks of a few rows, so that they and the rectangles cut one another."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 200)


@pytest.fixture
def chance() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return random.Random(seed)


def count_bytes(nbytes: int) -> None:
    """A progress bar that nobody looks at."""
    assert nbytes > 0


class Files:
    """Names of new files of one test."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._count = 0

    def new(self) -> Path:
        self._count += 1
        return self._folder / f"{self._count}.bin"


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


def stored(values: torch.Tensor, files: Files, chance: random.Random, transposed: bool = False) -> list[Piece]:
    """``values`` in random rectangles."""
    pieces = [
        hole(files.new(), rows, cols, values.dtype, chance, transposed and chance.random() < 0.5)
        for rows, cols in grid(*values.shape, chance)
    ]
    for piece in pieces:
        store(values, piece)
    return pieces


def holes(matrix: Matrix, files: Files, chance: random.Random) -> list[Piece]:
    return [
        hole(files.new(), rows, cols, matrix.dtype, chance) for rows, cols in grid(matrix.rows, matrix.cols, chance)
    ]


def whole(values: torch.Tensor, file: Path) -> Piece:
    """``values`` as one tensor that fills a file."""
    file.write_bytes(raw(values))
    rows, cols = values.shape
    return Piece(StoredTensor(file, 0, (rows, cols), values.dtype), (0, rows), (0, cols))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attempt", range(4))
def test_a_copy_has_the_same_bits(dtype, attempt, files, chance):
    rows, cols = chance.randint(1, 40), chance.randint(1, 40)
    matrix, values = Matrix(NAME, rows, cols, dtype), any_bits(rows, cols, dtype)
    target = holes(matrix, files, chance)
    done: list[int] = []

    sha256 = copy_tensor(matrix, stored(values, files, chance, transposed=True), target, advance=done.append)

    assert torch.equal(bits(load(target, rows, cols)), bits(values))
    assert sha256 == hashlib.sha256(raw(values)).hexdigest()
    assert read_tensor(matrix, target, advance=done.append) == sha256
    assert sum(done) == 2 * matrix.nbytes


def test_bytes_around_a_rectangle_stay_as_they_are(files, chance):
    values = any_bits(6, 5, torch.bfloat16)
    tensor = StoredTensor(files.new(), 7, (9, 8), torch.bfloat16)
    before = chance.randbytes(tensor.offset + tensor.nbytes + 4)
    tensor.file.write_bytes(before)
    target = Piece(tensor, (0, 6), (0, 5), at=(2, 1))

    copy_tensor(Matrix(NAME, 6, 5, torch.bfloat16), [whole(values, files.new())], [target], advance=count_bytes)

    expected = bytearray(before)
    for row in range(6):
        start = tensor.position(2 + row, 1)
        expected[start : start + 10] = raw(values[row : row + 1])
    assert tensor.file.read_bytes() == bytes(expected)


def test_every_replica_is_written(files, chance):
    values = any_bits(8, 6, torch.float16)
    matrix = Matrix(NAME, 8, 6, torch.float16)
    first, second = holes(matrix, files, chance), [hole(files.new(), (0, 8), (0, 6), torch.float16, chance)]
    repeated = [hole(files.new(), piece.rows, piece.cols, torch.float16, chance) for piece in first]
    copy_tensor(matrix, [whole(values, files.new())], first + repeated, advance=count_bytes)
    copy_tensor(matrix, first + repeated, second, advance=count_bytes)
    for pieces in (first, repeated, second):
        assert torch.equal(bits(load(pieces, 8, 6)), bits(values))


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_conversion_is_torchs(source, target, files, chance):
    values = torch.randn(23, 11).to(source)
    values[3, 4], values[5, 6], values[7, 8] = float("nan"), float("inf"), float("-inf")
    matrix = Matrix(NAME, 23, 11, target)
    pieces = holes(matrix, files, chance)
    sha256 = copy_tensor(matrix, stored(values, files, chance), pieces, advance=count_bytes)
    found = load(pieces, 23, 11)
    # Not the bits: torch has two NaNs of bfloat16, for numbers that fill a vector register and for the rest.
    torch.testing.assert_close(found, values.to(target), rtol=0, atol=0, equal_nan=True)
    assert sha256 == hashlib.sha256(raw(found)).hexdigest()


@pytest.mark.parametrize(
    ("number", "source", "target"),
    [
        (1e5, torch.float32, torch.float16),
        (-7e4, torch.bfloat16, torch.float16),
        (3.4e38, torch.float32, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("beside", [0.0, float("nan"), float("inf")])
def test_a_number_that_does_not_fit_is_an_error(number, source, target, beside, files):
    values = torch.randn(20, 20).to(source)
    values[17, 3], values[17, 4] = number, beside
    matrix = Matrix(NAME, 20, 20, target)
    hole_ = whole(torch.zeros(20, 20, dtype=target), files.new())
    with pytest.raises(CheckpointError, match=rf"{NAME}: 1 numbers of .* do not fit {str(target)[6:]}"):
        copy_tensor(matrix, [whole(values, files.new())], [hole_], advance=count_bytes)


def test_replicas_that_differ_are_named(files, chance):
    values = torch.randn(30, 12)
    one, other = whole(values, files.new()), whole(values, files.new())
    matrix, target = Matrix(NAME, 30, 12, torch.float32), whole(torch.zeros(30, 12), files.new())
    assert read_tensor(matrix, [one, other], advance=count_bytes) == hashlib.sha256(raw(values)).hexdigest()

    position = chance.randrange(30 * 12 * 4)
    data = bytearray(other.tensor.file.read_bytes())
    data[position] ^= 1
    other.tensor.file.write_bytes(data)
    with pytest.raises(CheckpointError, match="stored twice") as error:
        copy_tensor(matrix, [one, other], [target], advance=count_bytes)
    for part in (NAME, str(one.tensor.file), str(other.tensor.file)):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("rectangles", "message"),
    [
        ([((0, 4), (0, 6))], "only 24 of its 48 elements"),
        ([((0, 5), (0, 6)), ((4, 8), (0, 6))], r"overlap"),
        ([((0, 8), (0, 6)), ((8, 9), (0, 6))], r"has shape 8 x 6, but .* holds \[8:9, 0:6\]"),
        ([], "only 0 of its 48 elements"),
    ],
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_pieces_that_do_not_make_up_the_tensor(rectangles, message, side, files, chance):
    pieces = [hole(files.new(), rows, cols, torch.float32, chance) for rows, cols in rectangles]
    good = [whole(torch.randn(8, 6), files.new())]
    matrix = Matrix(NAME, 8, 6, torch.float32)
    with pytest.raises(CheckpointError, match=message) as error:
        copy_tensor(matrix, *((pieces, good) if side == "source" else (good, pieces)), advance=count_bytes)
    assert NAME in str(error.value)


def test_a_truncated_file_is_named(files):
    piece = whole(torch.randn(10, 10), files.new())
    os.truncate(piece.tensor.file, 399)
    matrix = Matrix(NAME, 10, 10, torch.float32)
    with pytest.raises(CheckpointError, match=rf"{NAME}: {piece.tensor.file} ends at byte 399") as error:
        read_tensor(matrix, [piece], advance=count_bytes)
    assert "truncated" in str(error.value)


def test_an_absent_file_is_named(files):
    piece = whole(torch.randn(10, 10), files.new())
    piece.tensor.file.unlink()
    with pytest.raises(CheckpointError, match=rf"{NAME}: {piece.tensor.file} cannot be read: No such file"):
        read_tensor(Matrix(NAME, 10, 10, torch.float32), [piece], advance=count_bytes)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_how_to_go_on(code, files, monkeypatch):
    def full(*_):
        raise OSError(code, os.strerror(code))

    source, target = (whole(torch.randn(10, 10), files.new()) for _ in range(2))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CheckpointError, match=f"{os.strerror(code)}. Make room and run the same command again"):
        copy_tensor(Matrix(NAME, 10, 10, torch.float32), [source], [target], advance=count_bytes)


def test_short_reads_and_writes_are_continued(files, monkeypatch):
    """Linux moves at most 2 GiB at once, and less when a signal comes."""
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, position: read(fd, [buffers[0][:7]], position))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, position: write(fd, data[:5], position))
    values = torch.randn(10, 10)
    source, target = whole(values, files.new()), whole(torch.zeros(10, 10), files.new())
    copy_tensor(Matrix(NAME, 10, 10, torch.float32), [source], [target], advance=count_bytes)
    assert torch.equal(load([target], 10, 10), values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_further_rows_are_the_mean_of_the_others(dtype, files, chance):
    values = torch.randn(37, 9).to(dtype)
    matrix = Matrix(NAME, 37, 9, dtype)
    target = holes(matrix, files, chance)
    fill = [hole(files.new(), rows, (0, 9), dtype, chance) for rows in ((37, 38), (38, 60))]

    sha256 = copy_tensor(matrix, stored(values, files, chance), target, fill, advance=count_bytes)

    mean = values.double().mean(0).to(dtype)
    assert torch.equal(load(target + fill, 60, 9), torch.cat([values, mean.expand(23, 9)]))
    assert sha256 == hashlib.sha256(raw(values)).hexdigest()
    assert read_tensor(matrix, target, fill, advance=count_bytes) == sha256

    damaged = fill[1]
    with damaged.tensor.file.open("r+b") as file:
        file.seek(damaged.tensor.position(damaged.at[0] + chance.randrange(22), damaged.at[1] + chance.randrange(9)))
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(CheckpointError, match=f"{NAME}: rows .* {damaged.tensor.file} pad the vocabulary"):
        read_tensor(matrix, target, fill, advance=count_bytes)


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32])
def test_memory_does_not_grow_with_the_tensor(source, files, monkeypatch):
    """Blocks of 1 MiB: two and what a conversion takes beside them, of a tensor of 32 MiB that is split by columns."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1 << 20)
    matrix = Matrix(NAME, 8192, 2048, torch.bfloat16)

    def columns(dtype: torch.dtype, parts: int) -> list[Piece]:
        width = matrix.cols // parts
        pieces = []
        for part in range(parts):
            tensor = StoredTensor(files.new(), 0, (matrix.rows, width), dtype)
            tensor.file.touch()
            os.truncate(tensor.file, tensor.nbytes)  # a hole: nothing but zeros
            pieces.append(Piece(tensor, (0, matrix.rows), (part * width, (part + 1) * width)))
        return pieces

    whole_tensor, halves = columns(source, 1), columns(torch.bfloat16, 2)
    tracemalloc.start()
    try:
        copy_tensor(matrix, whole_tensor, halves, advance=count_bytes)
        copy_tensor(matrix, halves, columns(torch.bfloat16, 4), advance=count_bytes)
        assert 1 << 20 <= tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_threads_report_every_result():
    assert dict(in_threads(lambda name, _: name.upper(), list("abcdef"), 3, count_bytes)) == {
        name: name.upper() for name in "abcdef"
    }


def test_an_error_stops_the_other_threads():
    rounds = []

    def job(name, advance):
        if name == "bad":
            time.sleep(0.05)
            raise CheckpointError("bad: broken")
        for _ in range(10_000):
            time.sleep(0.01)
            rounds.append(name)
            advance(1)

    with pytest.raises(CheckpointError, match="bad: broken"):
        list(in_threads(job, ["a", "bad", "c", "d"], 2, count_bytes))
    assert 0 < len(rounds) < 1000
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
