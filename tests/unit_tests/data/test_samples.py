"""Samples position by position."""

import random

import numpy as np
import pytest

from ascend_patch.data.samples import Sample, make_sample
from ascend_patch.data.templates import Example
from tests.unit_tests.data.stored_data import example

FILLER = 2


TWO = [example([1, 11, 12, 13, 2], "--+++"), example([1, 21, 22, 2, 31, 32, 2], "--++-++")]


def test_one_padded() -> None:
    sample = make_sample(TWO[:1], 6, FILLER)
    assert sample.tokens.tolist() == [1, 11, 12, 13, FILLER, FILLER]
    assert sample.loss_mask.tolist() == [0, 1, 1, 1, 0, 0]
    assert sample.labels[:4].tolist() == [FILLER, 12, 13, 2]  # the end of sequence is learned
    assert sample.boundaries.tolist() == [0, 4, 6]
    assert sample.position_ids.tolist() == [0, 1, 2, 3, 0, 1]


def test_two_packed_that_just_fit() -> None:
    sample = make_sample(TWO, 10, FILLER)
    assert sample.tokens.tolist() == [1, 11, 12, 13, 1, 21, 22, 2, 31, 32]
    assert sample.loss_mask.tolist() == [0, 1, 1, 1, 0, 1, 1, 0, 1, 1]
    assert sample.labels[sample.loss_mask > 0].tolist() == [12, 13, 2, 22, 2, 32, 2]
    assert sample.boundaries.tolist() == [0, 4, 10]
    assert sample.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]


def test_each_padded_to_a_multiple() -> None:
    sample = make_sample(TWO, 16, FILLER, multiple=4)
    assert sample.tokens.tolist() == [1, 11, 12, 13, 1, 21, 22, 2, 31, 32, *[FILLER] * 6]
    assert sample.boundaries.tolist() == [0, 4, 12, 16]  # the first needs no padding
    assert sample.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
    assert sample.loss_mask[10:].tolist() == [0] * 6
    sample = make_sample(TWO[::-1], 12, FILLER, multiple=4)
    assert sample.boundaries.tolist() == [0, 8, 12]
    assert sample.tokens.tolist() == [1, 21, 22, 2, 31, 32, FILLER, FILLER, 1, 11, 12, 13]
    assert sample.loss_mask.tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert sample.labels[5] == 2  # the end of the first, and not what follows
    assert make_sample(TWO, 8, FILLER, multiple=8).boundaries.tolist() == [0, 8]  # no room for the second


def test_cut() -> None:
    sample = make_sample(TWO, 6, FILLER)
    assert sample.tokens.tolist() == [1, 11, 12, 13, 1, 21]
    assert sample.loss_mask.tolist() == [0, 1, 1, 1, 0, 1]
    assert sample.labels[-1] == 22
    assert sample.boundaries.tolist() == [0, 4, 6]
    assert make_sample(TWO, 4, FILLER).boundaries.tolist() == [0, 4]  # nothing of the second


def test_nothing() -> None:
    sample = make_sample([example([], "")], 3, FILLER)
    assert sample.tokens.tolist() == sample.labels.tolist() == [FILLER] * 3
    assert sample.loss_mask.tolist() == [0, 0, 0]
    assert sample.boundaries.tolist() == [0, 3]


def test_types() -> None:
    sample = make_sample(TWO, 16, FILLER)
    assert sample.tokens.dtype == sample.labels.dtype == sample.position_ids.dtype == np.int64
    assert sample.loss_mask.dtype == np.float32
    assert sample.boundaries.dtype == np.int32


def test_hidden() -> None:
    sample = make_sample(TWO, 12, FILLER)
    for across in (False, True):
        hidden = sample.hidden(across)
        for row in range(12):
            for column in range(12):
                same = any(s <= row < e and s <= column < e for s, e in ((0, 4), (4, 10), (10, 12)))
                assert hidden[row, column] == (column > row or (across and not same)), (across, row, column)


def test_random_conversations() -> None:
    """Every learned token but a first one is a label exactly once, at the position before its own."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    generator = np.random.default_rng(seed)
    for _ in range(100):
        examples = [
            Example(generator.integers(3, 1000, n).astype(np.int32), generator.random(n) < 0.5)
            for n in generator.integers(1, 20, generator.integers(1, 6))
        ]
        length = int(sum(len(one.ids) - 1 for one in examples) + generator.integers(0, 5))
        if length == 0:
            continue
        sample = make_sample(examples, length, FILLER)
        check_padding(examples, sample, int(generator.integers(2, 9)))
        expected_inputs = [token for one in examples for token in one.ids[:-1]]
        expected = [
            (t if keep else None) for one in examples for t, keep in zip(one.ids[1:], one.learned[1:], strict=True)
        ]
        padding = length - len(expected)
        assert sample.tokens.tolist() == expected_inputs + [FILLER] * padding
        learned = [t if mask else None for t, mask in zip(sample.labels.tolist(), sample.loss_mask, strict=True)]
        assert learned == expected + [None] * padding
        assert np.all(np.diff(sample.boundaries) > 0)


def check_padding(examples: list[Example], unpadded: Sample, multiple: int) -> None:
    """Each conversation padded by itself: what is learned, and from which position, is the same."""
    length = multiple * sum(-(-len(one.ids) // multiple) for one in examples)
    sample = make_sample(examples, length, FILLER, multiple)
    assert not np.any(sample.boundaries % multiple)
    learned = [
        list(zip(s.tokens[m], s.labels[m], s.position_ids[m], strict=True))
        for s, m in ((s, s.loss_mask > 0) for s in (sample, unpadded))
    ]
    assert learned[0] == learned[1]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_samples(length: int) -> None:
    sample = make_sample(TWO, length, FILLER)
    assert len(sample.tokens) == length
    assert sample.boundaries.tolist() == [0, length]
