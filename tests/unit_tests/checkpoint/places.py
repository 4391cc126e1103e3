"""Tensors at places in files: what the tests of the formats read and write with, one byte range at a time."""

import random
from pathlib import Path

import torch

from ascend_patch.checkpoint.stored import StoredTensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def random_bits(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of random bytes."""
    count = torch.empty(shape, dtype=dtype, device="meta").numel() * dtype.itemsize
    return (
        torch.frombuffer(bytearray(random.randbytes(count) or b"\0"), dtype=torch.uint8)[:count].view(dtype).view(shape)
    )


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal shapes, dtypes and bytes; NaN equals itself."""
    return (one.shape, one.dtype) == (other.shape, other.dtype) and to_bytes(one) == to_bytes(other)


def to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def load(stored: StoredTensor) -> torch.Tensor:
    """What lies at the place, which must be inside of the file."""
    with stored.file.open("rb") as stream:
        stream.seek(stored.offset)
        data = bytearray(stream.read(stored.nbytes))
    assert len(data) == stored.nbytes
    return torch.frombuffer(data or bytearray(1), dtype=torch.uint8)[: len(data)].view(stored.dtype).view(stored.shape)


def store(stored: StoredTensor, tensor: torch.Tensor) -> None:
    assert (tuple(tensor.shape), tensor.dtype) == (stored.shape, stored.dtype)
    with stored.file.open("r+b") as stream:
        stream.seek(stored.offset)
        stream.write(to_bytes(tensor))


def replace(file: Path, old: bytes, new: bytes) -> None:
    """Damage a file: the only occurrence of some bytes becomes others, as many."""
    content = file.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    file.write_bytes(content.replace(old, new))
