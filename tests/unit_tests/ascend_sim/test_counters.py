"""What counts as a launch, a synchronisation, an upload; to which scope it belongs."""

import pytest
import torch

from ascend_sim import counters

pytestmark = [pytest.mark.simulator, pytest.mark.usefixtures("npu_device")]


def counted(function):
    counters.take()
    function()
    return counters.take()


def names(taken, kind="launches"):
    return {row["name"]: row["count"] for row in taken[kind]}


def test_a_launch_writes_memory(npu_device):
    x = torch.randn(8, 4, device=npu_device)
    taken = counted(lambda: x.t()[1:].expand(2, 3, 8) * 2)
    assert names(taken) == {"aten::mul.Tensor": 1}
    (row,) = taken["launches"]
    assert (row["bytes_read"], row["bytes_written"]) == (3 * 8 * 4, 2 * 3 * 8 * 4)


def test_views_and_allocations_are_no_launches(npu_device):
    x = torch.randn(8, 4, device=npu_device)
    taken = counted(lambda: (x.view(4, 8).transpose(0, 1).chunk(2), x.detach(), torch.empty(5, device=npu_device)))
    assert taken["launches"] == []


def test_an_operator_in_place_reads_and_writes(npu_device):
    x = torch.ones(10, device=npu_device)
    (row,) = counted(lambda: x.add_(x))["launches"]
    assert (row["bytes_read"], row["bytes_written"]) == (80, 40)
    (row,) = counted(lambda: x.zero_())["launches"]
    assert (row["bytes_read"], row["bytes_written"]) == (0, 40)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: bool((x > 0).any()),
        lambda x: torch.npu.current_stream().synchronize(),
        lambda x: torch.npu.synchronize(),
    ],
    ids=["item", "cpu", "tolist", "nonzero", "mask", "equal", "bool", "stream", "device"],
)
def test_a_sync(npu_device, wait):
    x = torch.tensor([1.0, -1.0, 2.0], device=npu_device)
    assert sum(names(counted(lambda: wait(x)), "syncs").values()) == 1


@pytest.mark.parametrize(
    "go_on",
    [
        lambda x: x.masked_fill(x > 0, 0.0),
        lambda x: torch.where(x > 0, x, 0),
        lambda x: torch.empty(3, pin_memory=True).copy_(x, non_blocking=True),
    ],
    ids=["masked_fill", "where", "pinned"],
)
def test_no_sync(npu_device, go_on):
    x = torch.tensor([1.0, -1.0, 2.0], device=npu_device)
    assert counted(lambda: go_on(x))["syncs"] == []


def test_a_copy_to_the_host_is_no_launch(npu_device):
    x = torch.ones(6, device=npu_device)
    host = torch.empty(6, pin_memory=True)
    assert counted(lambda: host.copy_(x, non_blocking=True))["launches"] == []
    assert counted(lambda: torch.empty(6).copy_(x))["launches"] == []


def test_what_torch_npu_runs_on_the_host_waits(npu_device):
    x = torch.tensor([1.0, 2.0], device=npu_device)
    taken = counted(lambda: torch.repeat_interleave(x, (x > 0).long()))
    assert sum(names(taken, "syncs").values()) >= 1


def test_an_upload_is_no_launch(npu_device):
    """It waits, unless it comes from pinned memory and was asked not to."""
    pinned = torch.empty(6, pin_memory=True)
    for upload, syncs in (
        (lambda: torch.ones(6).to(npu_device), 1),
        (lambda: torch.ones(6).to(npu_device, non_blocking=True), 1),
        (lambda: pinned.to(npu_device), 1),
        (lambda: pinned.to(npu_device, non_blocking=True), 0),
        (lambda: torch.empty(6, device=npu_device).copy_(pinned, non_blocking=True), 0),
    ):
        taken = counted(upload)
        assert taken["launches"] == []
        assert sum(names(taken, "syncs").values()) == syncs
        assert [row["bytes"] for row in taken["uploads"]] == [24]


def test_scopes_own_their_backward(npu_device):
    x = torch.randn(4, device=npu_device, requires_grad=True)

    def step():
        with counters.scope("first"):
            y = x.exp()
        with counters.scope("second"):
            z = y.sin()
        z.sum().backward()

    taken = counted(step)
    scopes = {(row["scope"], row["name"]) for row in taken["launches"]}
    assert {("first", "aten::exp"), ("second", "aten::sin"), ("second", "aten::cos"), ("", "aten::sum")} <= scopes
    # exp's backward multiplies by its result, sin's by the cosine: one each, in the scope of its forward
    assert {scope for scope, name in scopes if name == "aten::mul.Tensor"} == {"first", "second"}
