"""Rectangles in files: where an element lies, and what is no rectangle."""

from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint.errors import CheckpointError
from ascend_patch.checkpoint.stored import Checkpoint, Piece, StoredTensor

FILE = Path("file")


def test_a_tensor_is_a_matrix_of_its_last_dimension() -> None:
    tensor = StoredTensor(FILE, 100, (2, 3, 5), torch.bfloat16)
    assert (tensor.rows, tensor.cols, tensor.nbytes) == (6, 5, 60)
    reference = torch.arange(30).view(2, 3, 5).view(6, 5)
    assert tensor.position(4, 3) == 100 + 2 * int(reference[4, 3])


@pytest.mark.parametrize(("shape", "matrix"), [((7,), (1, 7)), ((), (1, 1)), ((0, 4), (0, 4))])
def test_a_vector_is_one_row(shape: tuple, matrix: tuple) -> None:
    tensor = StoredTensor(FILE, 0, shape, torch.float32)
    assert (tensor.rows, tensor.cols) == matrix


def test_a_view_has_the_same_bytes() -> None:
    tensor = StoredTensor(FILE, 8, (6, 5), torch.float16)
    assert tensor.view(2, 3, 5) == StoredTensor(FILE, 8, (2, 3, 5), torch.float16)
    with pytest.raises(CheckpointError, match=r"shape \(6, 5\) at byte 8 cannot be seen as \(4, 7\)"):
        tensor.view(4, 7)


@pytest.mark.parametrize(
    ("rows", "cols", "at", "transposed"),
    [
        ((0, 7), (0, 5), (0, 0), False),
        ((0, 6), (0, 6), (0, 0), False),
        ((0, 6), (0, 5), (1, 0), False),
        ((3, 5), (0, 2), (0, 4), False),
        ((0, 2), (0, 2), (-1, 0), False),
        ((4, 2), (0, 2), (3, 0), False),
        ((0, 6), (0, 5), (0, 0), True),
    ],
)
def test_a_rectangle_outside_of_its_tensor_is_refused(rows: tuple, cols: tuple, at: tuple, transposed: bool) -> None:
    with pytest.raises(CheckpointError, match="is not inside of the tensor of shape"):
        Piece(StoredTensor(FILE, 0, (6, 5), torch.float32), rows, cols, at, transposed)


def test_bytes_of_a_checkpoint_are_those_of_its_pieces() -> None:
    tensor = StoredTensor(FILE, 0, (6, 5), torch.bfloat16)
    piece, turned = Piece(tensor, (10, 12), (0, 5), (4, 0)), Piece(tensor, (0, 5), (0, 6), transposed=True)
    shape = None  # not needed to count
    checkpoint = Checkpoint(FILE, shape, torch.bfloat16, {"a": [piece, turned]}, {"b": [piece]})  # type: ignore[arg-type]
    assert checkpoint.nbytes == 2 * (10 + 30 + 10)
