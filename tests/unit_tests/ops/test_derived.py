"""A value made of a tensor lives as long as the tensor, and until that is written to."""

import gc
import weakref

import pytest
import torch

from ascend_patch.ops.derived import DerivedValues, host_list


class Made:
    """Something that can be referred to weakly."""


@pytest.fixture
def values():
    return DerivedValues(most=2)


def test_made_once_for_a_tensor_and_a_key(values):
    t, other = torch.zeros(2), torch.zeros(2)
    first = values.get(t, "a", Made)
    assert values.get(t, "a", Made) is first
    assert values.get(t, "b", Made) is not first
    assert values.get(other, "a", Made) is not first


def test_made_anew_after_a_write(values):
    t = torch.zeros(2)
    first = values.get(t, "a", Made)
    t[0] = 1
    assert values.get(t, "a", Made) is not first


def test_gone_with_its_tensor(values):
    t = torch.zeros(2)
    made = weakref.ref(values.get(t, "a", Made))
    assert made() is not None
    del t
    gc.collect()
    assert made() is None


def test_the_latest_used_ones_are_kept(values):
    t = torch.zeros(2)
    a, b = values.get(t, "a", Made), values.get(t, "b", Made)
    assert values.get(t, "a", Made) is a
    values.get(t, "c", Made)
    assert values.get(t, "a", Made) is a
    assert values.get(t, "b", Made) is not b


def test_nothing_is_kept_for_a_tensor_of_inference_mode(values):
    with torch.inference_mode():
        t = torch.tensor([1, 2])
        assert host_list(t) == [1, 2]
        t[0] = 5
        assert host_list(t) == [5, 2]
