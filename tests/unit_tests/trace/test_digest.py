"""Digests of tensors against numpy; hashes that notice what sums do not."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_patch.trace import digest
from ascend_patch.trace.digest import Digests

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)


def digest_of(*tensors: torch.Tensor) -> list:
    digests = Digests()
    assert [digests.add(tensor) for tensor in tensors] == list(range(len(tensors)))
    return digests.to_host()


@contextmanager
def small_blocks(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "BLOCK", size)
        digest._weights.cache_clear()
        yield
        digest._weights.cache_clear()


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 7), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = 3 * torch.randn(shape, generator=generator)
    dtype = draw(st.sampled_from(DTYPES))
    return (values.abs() if dtype == torch.uint8 else values).to(dtype).movedim(0, -1) if shape else values.to(dtype)


@settings(deadline=None)
@given(tensors(), st.integers(1, 40))
def test_numbers(tensor: torch.Tensor, block: int) -> None:
    """Whatever the size of the blocks."""
    with small_blocks(block):
        (found,) = digest_of(tensor)
    values = tensor.double().numpy()
    assert found.count == values.size
    assert found.total == pytest.approx(values.sum(), abs=1e-9)
    assert found.square == pytest.approx((values**2).sum())
    assert found.largest == numpy.abs(values).max(initial=0)


@settings(deadline=None)
@given(tensors(), st.data())
def test_the_hash_is_of_elements_and_their_order(tensor: torch.Tensor, data: st.DataObject) -> None:
    if tensor.numel() < 2:
        return
    flat = tensor.reshape(-1)
    order = data.draw(st.permutations(range(flat.numel())))
    permuted = flat[order].view(tensor.shape)
    same, copy, other = digest_of(tensor, tensor.clone(memory_format=torch.contiguous_format), permuted)
    assert same == copy
    assert (same.hash == other.hash) == torch.equal(tensor, permuted)
    assert same.square == pytest.approx(other.square)


def test_every_bit_counts() -> None:
    tensor = torch.randn(3 * 2**20 + 5)
    place = int(torch.randint(tensor.numel(), ()))
    changed = tensor.clone()
    changed.view(torch.int32)[place] ^= 1
    one, other = digest_of(tensor, changed)
    assert one.hash != other.hash


def test_what_is_not_a_number() -> None:
    (found,) = digest_of(torch.tensor([1.0, float("nan"), -2.0]))
    assert all(numpy.isnan([found.total, found.square, found.largest]))
    (found,) = digest_of(torch.tensor([1.0, float("inf")]))
    assert (found.total, found.largest) == (float("inf"), float("inf"))


@settings(deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20), st.integers(1, 9))
def test_the_hash_by_the_book(values: list[int], block: int) -> None:
    """With Python's integers: traces of different versions are compared, so that it must stay this."""
    mix = 0x9E3779B97F4A7C15
    expected = 0
    for start in range(0, len(values), block):
        part = values[start : start + block]
        expected = expected * mix + sum(value * weight(place) for place, value in enumerate(part, 1))
    with small_blocks(block):
        (found,) = digest_of(torch.tensor(values, dtype=torch.int32))
    assert found.hash == f"{expected % 2**64:016x}"


def weight(place: int) -> int:
    """splitmix64, made odd."""
    x = place * 0x9E3779B97F4A7C15 % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift)) * factor % 2**64
    return x | 1
