"""Reductions of float64, which HCCL does not have."""

import pytest
import torch
import torch.distributed as dist

from ascend_patch.devices import hccl
from ascend_patch.devices.substitute import Substitutions

pytestmark = pytest.mark.npu
OTHERS = torch.tensor([3.0, -2.0], dtype=torch.float64)


@pytest.fixture
def passed_on(monkeypatch):
    """A group of two ranks: what this one gathers is its own and OTHERS; calls that reach all_reduce are listed."""
    calls = []

    def all_gather_into_tensor(gathered, mine, group):
        gathered.copy_(torch.cat([mine.cpu(), OTHERS.unsqueeze(0)]))

    monkeypatch.setattr(dist, "all_reduce", lambda *args, **kwargs: calls.append(args))
    monkeypatch.setattr(dist, "all_gather_into_tensor", all_gather_into_tensor)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: -1 if group == "of others" else 2)
    substitutions = Substitutions()
    hccl.install(substitutions)
    yield calls
    substitutions.revert()


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (dist.ReduceOp.SUM, [4.0, 3.0]),
        (dist.ReduceOp.AVG, [2.0, 1.5]),
        (dist.ReduceOp.MIN, [1.0, -2.0]),
        (dist.ReduceOp.MAX, [3.0, 5.0]),
    ],
    ids=["sum", "avg", "min", "max"],
)
def test_float64_is_gathered_and_reduced(passed_on, npu_device, op, expected):
    tensor = torch.tensor([1.0, 5.0], dtype=torch.float64, device=npu_device)
    assert dist.all_reduce(tensor, op=op) is None
    assert tensor.tolist() == expected
    assert passed_on == []


def test_everything_else_goes_to_hccl(passed_on, npu_device):
    on_npu = torch.ones(2, dtype=torch.float64, device=npu_device)
    dist.all_reduce(on_npu.float())
    dist.all_reduce(on_npu, async_op=True)
    dist.all_reduce(on_npu, dist.ReduceOp.PRODUCT)
    dist.all_reduce(on_npu.cpu())
    dist.all_reduce(on_npu, group="of others")
    assert len(passed_on) == 5
