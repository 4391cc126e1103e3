"""Canonical tensors cut into random rectangles that lie in plain files: what the engine's tests copy between."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from ascend_patch.checkpoint.stored import Piece, StoredTensor

_INTEGER = {2: torch.int16, 4: torch.int32}


def any_bits(rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Random bits, among them NaNs with payloads, infinities and denormal numbers."""
    bound = 2 ** (8 * dtype.itemsize - 1)
    return torch.randint(-bound, bound, (rows, cols), dtype=torch.int64).to(_INTEGER[dtype.itemsize]).view(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(_INTEGER[tensor.itemsize])


def raw(tensor: torch.Tensor) -> bytes:
    return bits(tensor).numpy().tobytes()


def cut(length: int, parts: int, random: random.Random) -> list[tuple[int, int]]:
    """[0, length) in at most ``parts`` ranges of random lengths."""
    marks = sorted({0, length, *(random.randint(0, length) for _ in range(parts - 1))})
    return list(zip(marks[:-1], marks[1:], strict=True))


def grid(rows: int, cols: int, random: random.Random) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Rectangles that cover a matrix once."""
    return [(top, left) for top in cut(rows, 4, random) for left in cut(cols, 3, random)]


def hole(file: Path, rows, cols, dtype: torch.dtype, random: random.Random, transposed: bool = False) -> Piece:
    """A rectangle somewhere in a larger tensor of a file of zeros; often it is the whole tensor."""
    height, width = rows[1] - rows[0], cols[1] - cols[0]
    if transposed:
        height, width = width, height
    above, left, below, right = (random.choice((0, 0, 1, 3)) for _ in range(4))
    shape = (above + height + below, left + width + right)
    tensor = StoredTensor(file, random.randint(0, 9), shape, dtype)
    file.write_bytes(bytes(tensor.offset + tensor.nbytes + random.randint(0, 5)))
    return Piece(tensor, rows, cols, (above, left), transposed)


def store(matrix: torch.Tensor, piece: Piece) -> None:
    """Write the piece's part of ``matrix`` to where it lies, one element row at a time."""
    part = matrix[slice(*piece.rows), slice(*piece.cols)]
    part = part.T if piece.transposed else part
    with piece.tensor.file.open("r+b") as file:
        for index, row in enumerate(part):
            file.seek(piece.tensor.position(piece.at[0] + index, piece.at[1]))
            file.write(raw(row.view(1, -1)))


def load(pieces: Sequence[Piece], rows: int, cols: int) -> torch.Tensor:
    """The matrix that the pieces hold, read in the plainest way."""
    found = torch.zeros(rows, cols, dtype=pieces[0].tensor.dtype)
    for piece in pieces:
        tensor = piece.tensor
        data = bytearray(tensor.file.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes])
        whole = torch.frombuffer(data, dtype=tensor.dtype).view(tensor.rows, tensor.cols)
        (row, col), (height, width) = piece.at, piece.size
        bits(found)[slice(*piece.rows), slice(*piece.cols)] = bits(whole)[row : row + height, col : col + width]
    return found
