"""Experts of 2, 4 and 8 ranks against one process in float64, forward and backward."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ascend_patch.ops.parallel_grouped_gemm import (
    Exchange,
    all_to_all_grouped_gemm,
    grouped_gemm_all_to_all,
    passes,
)
from ascend_patch.ops.parallel_grouped_gemm import torch as pieces
from tests.unit_tests.ranks import require_all_passed, run_worker

WORKER = "tests.unit_tests.ops.parallel_grouped_gemm.worker"


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_exact(ranks: int, tmp_path: Path) -> None:
    require_all_passed(run_worker(WORKER, ranks, tmp_path, "cpu"), least=8)


@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_exact_on_npu(ranks: int, tmp_path: Path) -> None:
    require_all_passed(run_worker(WORKER, ranks, tmp_path, "npu"), least=8)


@pytest.mark.slow
@pytest.mark.simulator
@pytest.mark.usefixtures("npu_device")
def test_fused_on_the_npu_that_has_it(tmp_path: Path) -> None:
    results = run_worker(WORKER, 8, tmp_path, "large", timeout=600, ASCEND_SIM_SOC="Ascend910_9392")
    require_all_passed(results, least=8)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, as one of 2 ranks of which both send themselves what they would send the other."""
    events: list[str] = []

    def exchanged(out: torch.Tensor, rows: torch.Tensor, *_: object, **__: object) -> SimpleNamespace:
        out.copy_(rows)
        events.append("rows leave")
        return SimpleNamespace(wait=lambda: events.append("rows arrive"))

    def noted(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            events.append(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(dist, "all_to_all_single", exchanged)
    monkeypatch.setattr(pieces, "grouped_product", noted("product", pieces.grouped_product))
    monkeypatch.setattr(passes, "grouped_weight_gradient", noted("weight gradient", passes.grouped_weight_gradient))
    return events


GROUP = SimpleNamespace(size=lambda: 2, rank=lambda: 1)


def layer(function: Callable, experts: int, events: list[str]) -> tuple[list[str], list[str]]:
    """What happened forward and backward."""
    exchange = Exchange(GROUP, [[3] * 2 * experts] * 2)
    x = torch.randn(6 * experts, 3, requires_grad=True)
    weight = torch.randn(experts, 5, 3, requires_grad=True)
    output = function(x, weight, exchange)
    forward = list(events)
    events.clear()
    output.sum().backward()
    return forward, list(events)


@pytest.mark.parametrize(("experts", "parts"), [(1, 1), (2, 2), (4, 4), (5, 3), (8, 4)])
def test_rows_arrive_during_products(order: list[str], experts: int, parts: int) -> None:
    forward, backward = layer(all_to_all_grouped_gemm, experts, order)
    assert forward == ["rows leave"] * parts + ["rows arrive", "product"] * parts
    assert backward == ["product", "rows leave"] * parts + ["weight gradient"] + ["rows arrive"] * parts


@pytest.mark.parametrize(("experts", "parts"), [(1, 1), (2, 2), (4, 4), (5, 3), (8, 4)])
def test_rows_leave_during_products(order: list[str], experts: int, parts: int) -> None:
    forward, backward = layer(grouped_gemm_all_to_all, experts, order)
    assert forward == ["product", "rows leave"] * parts + ["rows arrive"] * parts
    assert backward == ["rows leave"] * parts + ["rows arrive", "product"] * parts + ["weight gradient"]


@pytest.mark.parametrize("function", [all_to_all_grouped_gemm, grouped_gemm_all_to_all])
def test_what_does_not_fit(function: Callable) -> None:
    exchange = Exchange(GROUP, [[1, 0, 2, 3], [0, 2, 1, 3]])
    x, weight = torch.randn(6 if function is all_to_all_grouped_gemm else 9, 3), torch.randn(2, 5, 3)
    with pytest.raises(ValueError, match=r"allowed are \[rows, K\] and \[E, N, K\]"):
        function(x, weight.transpose(1, 2), exchange)
    with pytest.raises(ValueError, match="of the same dtype"):
        function(x, weight.double(), exchange)
    with pytest.raises(ValueError, match="7 rows and 2 experts; the exchange is of (6|9) rows and 2 experts"):
        function(torch.randn(7, 3), weight, exchange)
    with pytest.raises(ValueError, match="3 experts; the exchange"):
        function(x, torch.randn(3, 5, 3), exchange)
    with pytest.raises(ValueError, match=r"it must be contiguous and of the shape of weight, \(2, 5, 3\)"):
        function(x, weight, exchange, weight.transpose(1, 2))


@pytest.mark.parametrize("rows", [[[1, 2]], [[1, 2], [1]], [[1], [1]], [[], []]])
def test_counts_of_no_exchange(rows: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="for 2 ranks; there must be one a rank"):
        Exchange(GROUP, rows)


def test_who_sends_what() -> None:
    exchange = Exchange(GROUP, [[1, 0, 2, 3], [0, 2, 1, 4]])
    assert exchange.sent == [[0, 2], [1, 4]]
    assert exchange.received == [[2, 3], [1, 4]]
    assert exchange.rows_per_expert == [3, 7]
