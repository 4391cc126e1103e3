"""Collectives in a group of one rank, against Gloo's own."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from ascend_patch.devices.cpu import one_rank
from ascend_patch.devices.substitute import Substitutions

NAMES = ("all_gather_into_tensor", "reduce_scatter_tensor")


@pytest.fixture
def gloo() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def substituted(gloo: None) -> Iterator[None]:
    substitutions = Substitutions()
    one_rank.install(substitutions)
    yield
    substitutions.revert()


def unused(*args, **kwargs):
    raise AssertionError("Gloo was called")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("async_op", [False, True])
def test_like_gloo(gloo: None, name: str, async_op: bool) -> None:
    collective = getattr(dist, name)
    wrapped = getattr(one_rank, f"_{name}")(unused)
    source = torch.randn(3, 5).bfloat16()
    expected, found = torch.empty(15).bfloat16(), torch.empty(15).bfloat16()
    collective(expected, source.flatten())
    work = wrapped(found, source, async_op=async_op)
    assert (work is not None) == async_op
    if work is not None:
        assert work.wait() and work.is_completed()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_memory_stays_untouched(gloo: None, name: str) -> None:
    buffer = torch.randn(8)
    version = buffer._version
    getattr(one_rank, f"_{name}")(unused)(buffer[:], buffer)
    assert buffer._version == version


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("input", [torch.ones(2), torch.ones(3, dtype=torch.float64)])
def test_what_does_not_fit_is_left_to_gloo(gloo: None, name: str, input: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match="Gloo was called"):
        getattr(one_rank, f"_{name}")(unused)(torch.empty(3), input)


def test_within_a_coalescing_manager(substituted: None) -> None:
    """As the distributed optimizer calls them."""
    source, found = torch.randn(4), torch.empty(4)
    with dist._coalescing_manager(dist.group.WORLD, async_ops=True) as manager:
        dist.reduce_scatter_tensor(found, source, op=dist.ReduceOp.AVG, group=dist.group.WORLD, async_op=True)
    manager.wait()
    assert torch.equal(found, source)
