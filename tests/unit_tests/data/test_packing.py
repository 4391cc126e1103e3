"""Conversations are put together so that each is there once and none is cut."""

import random
from fractions import Fraction
from math import ceil

import pytest

from ascend_patch.data.packing import pack


def test_known() -> None:
    assert pack([], 4) == []
    assert pack([4], 4) == [[0]]
    assert pack([3, 2, 1, 2], 4) == [[0, 2], [1, 3]]
    assert pack([0, 4, 0], 4) == [[0, 1, 2]]


def test_random_lengths() -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    generator = random.Random(seed)
    for _ in range(200):
        capacity = generator.randint(1, 60)
        lengths = [generator.randint(0, capacity) for _ in range(generator.randint(0, 80))]
        bins = pack(lengths, capacity)
        assert sorted(index for one in bins for index in one) == list(range(len(lengths)))
        assert all(sum(lengths[index] for index in one) <= capacity for one in bins)
        assert all(one == sorted(one) for one in bins)
        assert bins == sorted(bins)
        # The fewest are at least the sum; best fit decreasing needs no more than 11/9 of the fewest and a bin, and
        # twice the sum where that is all that is known of the fewest.
        assert len(bins) <= 2 * ceil(Fraction(sum(lengths), capacity)) + 1


def test_too_long() -> None:
    with pytest.raises(ValueError, match="length 5 at 1 is more than the capacity, 4"):
        pack([1, 5], 4)
