"""Every case of parallel_grouped_gemm in a group of processes: ``worker.py SIZE FOLDER SEED KIND``.

The kind is a device, or ``large``: an npu, and the cases of :mod:`tests.unit_tests.ops.parallel_grouped_gemm.large`.
The results are those of :mod:`tests.unit_tests.ranks`. Everybody makes everybody's inputs, so that what a rank must
find is computed by one process in float64.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.ops import registry
from ascend_patch.ops.grouped_gemm import grouped_gemm
from ascend_patch.ops.parallel_grouped_gemm import (
    Exchange,
    all_to_all_grouped_gemm,
    grouped_gemm_all_to_all,
    reference,
)
from tests.unit_tests.ops.checks import relative_error
from tests.unit_tests.ops.parallel_grouped_gemm import large
from tests.unit_tests.ranks import check_all, fork_ranks, join

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
SIZES = (8, 24, 16)
"""In bfloat16 and float32 these are what PyTorch's grouped kernel takes."""


@dataclass(frozen=True)
class Case:
    """One layer and what is asked of it.

    Attributes:
        first: ``all_to_all_grouped_gemm``, else the other function.
        experts: of one rank.
        rows: ``some`` for each expert, at ``random`` also none, ``none`` of one rank or ``nothing`` at all.
        odd: sizes that the grouped kernels do not take.
        accumulates: the weight's gradient is added to a float32 tensor.
        runs: the variant that must have taken the call.
    """

    variant: str
    first: bool
    experts: int
    dtype: torch.dtype = torch.float32
    rows: str = "random"
    odd: bool = False
    frozen: bool = False
    accumulates: bool = False
    runs: str = ""


def _cases(kind: str) -> Iterator[Case]:
    for first in (True, False):
        if kind == "npu":
            for experts in (1, 2, 6):
                yield Case("npu", first, experts, torch.bfloat16, runs="torch")
            yield Case("npu", first, 2, torch.bfloat16, "none", accumulates=True, runs="torch")
            yield Case("npu", first, 2, torch.float32, "nothing", runs="torch")
            yield Case("npu", first, 3, torch.float16, frozen=True, runs="torch")
            continue
        for variant in ("torch", "reference"):
            for dtype in (torch.float64, torch.float32, torch.bfloat16):
                yield Case(variant, first, 3, dtype)
            for experts in (1, 2, 4, 5, 8):
                yield Case(variant, first, experts)
            for rows in ("some", "none", "nothing"):
                yield Case(variant, first, 2, rows=rows)
            yield Case(variant, first, 3, odd=True)
            yield Case(variant, first, 3, frozen=True)
            yield Case(variant, first, 5, torch.bfloat16, accumulates=True)
            yield Case(variant, first, 2, torch.bfloat16, "nothing", accumulates=True)


def _counts(case: Case, size: int, generator: torch.Generator) -> list[list[int]]:
    counts = torch.randint(1 if case.rows == "some" else 0, 6, (size, size * case.experts), generator=generator)
    if case.rows == "random":
        counts[:, torch.randint(size * case.experts, (), generator=generator)] = 0  # an expert that nobody chose
    if case.rows == "none":
        counts[0] = 0
        counts[:, -case.experts :] = 0
    return (counts * (case.rows != "nothing")).tolist()


def check(case: Case, kind: str, device: torch.device, generator: torch.Generator) -> None:
    """Result, gradients and bytes of one case on this rank."""
    chosen = {"parallel_grouped_gemm": case.variant} if case.variant != "npu" else None
    registry.select(kind, chosen)
    group = dist.group.WORLD
    size, rank = group.size(), group.rank()
    exchange = Exchange(group, _counts(case, size, generator))
    inner, outer = (SIZES[0] + case.odd, SIZES[1] + 2 * case.odd)[:: 1 if case.first else -1]
    sent = [sum(row) for row in exchange.rows]
    received = [sum(sum(row[r * case.experts : (r + 1) * case.experts]) for row in exchange.rows) for r in range(size)]

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(case.dtype)

    x = [random(rows, inner) for rows in (sent if case.first else received)]
    weight = random(size * case.experts, outer, inner) / inner**0.5
    grad_y = [random(rows, outer) for rows in (received if case.first else sent)]
    y, grad_x, grad_weight = _expected(case, exchange.rows, x, weight, grad_y, rank)

    function = all_to_all_grouped_gemm if case.first else grouped_gemm_all_to_all
    own_weight = weight.view(size, case.experts, outer, inner)[rank].to(device).clone()
    main_grad = torch.randn(own_weight.shape, generator=generator).to(device) if case.accumulates else None

    def run(layer: Callable) -> tuple[Tensor, Tensor, Tensor | None]:
        a = x[rank].to(device).clone().requires_grad_()
        b = own_weight.clone().requires_grad_(not case.frozen)
        into = None if main_grad is None else main_grad.clone()
        result = layer(a, b, exchange, into)
        result.backward(grad_y[rank].to(device))
        assert result.dtype == a.grad.dtype == case.dtype
        assert into is None or b.grad is None
        return result.detach().cpu(), a.grad.cpu(), b.grad.cpu() if into is None and b.grad is not None else into

    with counted_bytes() as bytes_sent:
        found = run(function)
    (taken,) = registry.report()["parallel_grouped_gemm"]["calls"].values()
    assert taken == {case.runs or case.variant: 1}
    tolerance = TOLERANCES[case.dtype]
    assert relative_error(found[0], y) <= tolerance
    assert relative_error(found[1], grad_x) <= tolerance
    if case.frozen:
        assert found[2] is None
    else:
        gradient = found[2] if main_grad is None else (found[2] - main_grad).cpu()
        assert relative_error(gradient, grad_weight) <= (tolerance if main_grad is None else 2e-2)
    columns = inner if case.first else outer
    assert sum(bytes_sent) == (sent[rank] + received[rank]) * columns * x[0].element_size()
    if case.variant == "torch":
        for one, other in zip(found, run(_COMPOSED[case.first]), strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def _first(x: Tensor, weight: Tensor, exchange: Exchange, into: Tensor | None) -> Tensor:
    by_rank = reference._AllToAll.apply(x, exchange.group, exchange.sent, exchange.received)
    by_expert = reference._transposed(by_rank, exchange.received)
    return grouped_gemm(by_expert, weight, exchange.rows_per_expert, into)


def _second(x: Tensor, weight: Tensor, exchange: Exchange, into: Tensor | None) -> Tensor:
    y = grouped_gemm(x, weight, exchange.rows_per_expert, into)
    by_rank = reference._transposed(y, [list(column) for column in zip(*exchange.received, strict=True)])
    return reference._AllToAll.apply(by_rank, exchange.group, exchange.received, exchange.sent)


_COMPOSED = {True: _first, False: _second}
"""One exchange and one grouped GEMM: upstream's order of things, with the bits that the pieces must have."""


def _expected(
    case: Case, rows: list[list[int]], x: list[Tensor], weight: Tensor, grad_y: list[Tensor], rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Result and gradients of one rank, in float64, from everybody's inputs."""
    ranks, experts = range(len(rows)), range(len(rows[0]))
    x = [t.double().clone().requires_grad_() for t in x]
    weight = weight.double().clone().requires_grad_()
    owned = [experts[r * case.experts : (r + 1) * case.experts] for r in ranks]
    if case.first:
        parts = {(r, e): part for r in ranks for e, part in enumerate(x[r].split(rows[r]))}
        y = [torch.cat([parts[r, e] @ weight[e].t() for e in owned[p] for r in ranks]) for p in ranks]
    else:
        keys = [[(r, e) for e in owned[p] for r in ranks] for p in ranks]
        parts = {
            key: part
            for p in ranks
            for key, part in zip(keys[p], x[p].split([rows[r][e] for r, e in keys[p]]), strict=True)
        }
        y = [torch.cat([parts[r, e] @ weight[e].t() for e in experts]) for r in ranks]
    torch.autograd.backward(y, [t.double() for t in grad_y])
    own = slice(owned[rank].start, owned[rank].stop)
    return y[rank].detach(), x[rank].grad, weight.grad[own]


@contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """The bytes that this rank puts into each all-to-all."""
    sent: list[int] = []
    original = dist.all_to_all_single

    def counting(output: Tensor, input: Tensor, *args, **kwargs):
        sent.append(input.nbytes)
        return original(output, input, *args, **kwargs)

    dist.all_to_all_single = counting
    try:
        yield sent
    finally:
        dist.all_to_all_single = original


def run(rank: int, size: int, kind: str, folder: Path, seed: int) -> None:
    """One rank."""
    device = join("cpu" if kind == "cpu" else "npu", rank, size, folder)
    generators = (torch.Generator().manual_seed(seed + i) for i in itertools.count())
    if kind == "large":
        checks = ((str(case), partial(large.check, case, device, next(generators))) for case in large.cases())
    else:
        checks = ((str(case), partial(check, case, kind, device, next(generators))) for case in _cases(kind))
    check_all(checks, rank, folder)


if __name__ == "__main__":
    size, folder, seed, kind = sys.argv[1:]
    fork_ranks(int(size), run, int(size), kind, Path(folder), int(seed))
