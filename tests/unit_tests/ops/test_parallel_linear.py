"""Sequence parallel linear layers of 2, 4 and 8 ranks against one process in float64, forward and backward."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ascend_patch.ops.parallel_linear import all_gather_linear, linear_reduce_scatter, passes
from ascend_patch.ops.parallel_linear import torch as pieces
from tests.unit_tests.ranks import require_all_passed, run_worker

WORKER = "tests.unit_tests.ops.parallel_linear.worker"


@pytest.mark.parametrize("ranks", [2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_exact(ranks: int, tmp_path: Path) -> None:
    require_all_passed(run_worker(WORKER, ranks, tmp_path, "cpu"), least=18)


@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_exact_on_npu(ranks: int, tmp_path: Path) -> None:
    require_all_passed(run_worker(WORKER, ranks, tmp_path, "npu"), least=18)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, as rank 1 of 2 that hold the same."""
    events: list[str] = []

    def handle(name: str) -> SimpleNamespace:
        events.append(f"{name} leaves")
        return SimpleNamespace(wait=lambda: events.append(f"{name} arrives"))

    def gather(out: torch.Tensor, part: torch.Tensor, **_: object) -> SimpleNamespace:
        out.copy_(torch.cat([part, part]))
        return handle("gather")

    def scatter(out: torch.Tensor, whole: torch.Tensor, **_: object) -> SimpleNamespace:
        out.copy_(whole.chunk(2)[1])
        return handle("scatter")

    def noted(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            events.append(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(dist, "all_gather_into_tensor", gather)
    monkeypatch.setattr(dist, "reduce_scatter_tensor", scatter)
    monkeypatch.setattr(pieces.torch, "mm", noted("product", torch.mm))
    monkeypatch.setattr(passes, "_weight_gradient", noted("weight gradient", passes._weight_gradient))
    return events


GROUP = SimpleNamespace(size=lambda: 2, rank=lambda: 1)


def layer(function: Callable, rows: int, events: list[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What happened forward and backward."""
    x, weight = torch.randn(rows, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    output = function(x, weight, GROUP)
    forward = list(events)
    events.clear()
    output.sum().backward()
    return forward, list(events)


def test_rows_are_gathered_during_products(order: list[str]) -> None:
    forward, backward = layer(all_gather_linear, 4, order)
    arriving = ["gather arrives", "product"]
    assert forward == ["gather leaves"] * 2 + ["product"] + arriving * 2
    assert backward == [
        "gather leaves", "product", "gather arrives", "scatter leaves", "weight gradient", "scatter arrives",
    ]  # fmt: skip


def test_results_are_scattered_during_products(order: list[str]) -> None:
    forward, backward = layer(linear_reduce_scatter, 8, order)
    leaving = ["product", "product", "scatter leaves"]
    assert forward == leaving * 2 + ["scatter arrives"] * 2
    arriving = ["gather arrives", "product"]
    assert backward == ["gather leaves"] * 2 + ["product"] + arriving * 2 + ["weight gradient"]


@pytest.mark.parametrize("function", [all_gather_linear, linear_reduce_scatter])
def test_what_does_not_fit(function: Callable) -> None:
    x, weight = torch.randn(4, 3), torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"allowed are \[rows, K\] and \[N, K\]"):
        function(x, weight.t(), GROUP)
    with pytest.raises(ValueError, match="of the same dtype"):
        function(x, weight.double(), GROUP)
    with pytest.raises(ValueError, match=r"it must be that of weight, \(5, 3\)"):
        function(x, weight, GROUP, weight.t())


def test_rows_that_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="5 rows for 2 ranks; they must be a multiple"):
        linear_reduce_scatter(torch.randn(5, 3), torch.randn(4, 3), GROUP)
