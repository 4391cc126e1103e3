"""Exchanges that are large enough for the fused Ascend operators: against the portable variant in float32.

That one is checked against float64 by :mod:`tests.unit_tests.ops.parallel_grouped_gemm.worker`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.ops import registry
from ascend_patch.ops.parallel_grouped_gemm import Exchange, all_to_all_grouped_gemm, grouped_gemm_all_to_all
from tests.unit_tests.ops.checks import relative_error

LEAST = 2**20
"""Elements between two ranks, of two bytes each."""


@dataclass(frozen=True)
class Case:
    """One layer. ``short``: one rank sends another a row less than the operators need."""

    first: bool
    experts: int
    inner: int
    outer: int
    dtype: torch.dtype
    short: bool = False
    frozen: bool = False
    accumulates: bool = False


def cases() -> Iterator[Case]:
    for first in (True, False):
        yield Case(first, 1, 64, 96, torch.bfloat16)
        yield Case(first, 3, 80, 64, torch.float16, frozen=True)
        yield Case(first, 2, 64, 64, torch.bfloat16, accumulates=True)
        yield Case(first, 2, 64, 64, torch.bfloat16, short=True)


def check(case: Case, device: torch.device, generator: torch.Generator) -> None:
    """Result and gradients of one case on this rank."""
    registry.select("npu")
    group = dist.group.WORLD
    size, rank = group.size(), group.rank()
    exchange = Exchange(group, _counts(case, size, generator))
    sent, received = sum(map(sum, exchange.sent)), sum(exchange.rows_per_expert)
    own = torch.Generator().manual_seed(generator.initial_seed() * size + rank)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=own).to(device, case.dtype)

    x = random(sent if case.first else received, case.inner)
    weight = random(case.experts, case.outer, case.inner) / case.inner**0.5
    grad_y = random(received if case.first else sent, case.outer)
    main_grad = random(*weight.shape).float() if case.accumulates else None

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        a, b = x.to(dtype).clone().requires_grad_(), weight.to(dtype).clone().requires_grad_(not case.frozen)
        into = None if main_grad is None else main_grad.clone()
        layer = all_to_all_grouped_gemm if case.first else grouped_gemm_all_to_all
        y = layer(a, b, exchange, into)
        y.backward(grad_y.to(dtype))
        return y.detach(), a.grad, b.grad if into is None else into - main_grad

    found = run(case.dtype)
    report = registry.report()["parallel_grouped_gemm"]
    (taken,) = report["calls"].values()
    assert taken == {"torch" if case.short else "npu": 1}
    assert [reason.split(";")[0] for reason in report["unsupported"]] == [
        "an exchange of too little or too much"
    ] * case.short
    for name, one, exact in zip(
        ("result", "gradient of x", "gradient of weight"), found, run(torch.float32), strict=True
    ):
        assert (one is None) == (exact is None) == (case.frozen and name == "gradient of weight"), name
        assert one is None or relative_error(one.cpu(), exact.double().cpu()) <= 1e-2, name


def _counts(case: Case, size: int, generator: torch.Generator) -> list[list[int]]:
    least = -(-LEAST // min(case.inner, case.outer))
    counts = torch.randint(0, 50, (size, size, case.experts), generator=generator)
    counts[:, :, -1] += least - counts.sum(2) + torch.randint(0, 300, (size, size), generator=generator)
    if case.short:
        counts[1, 2, -1] += least - 1 - counts[1, 2].sum()
    return counts.flatten(1).tolist()
