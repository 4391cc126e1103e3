"""Every case of parallel_linear in a group of processes: ``worker.py SIZE FOLDER SEED DEVICE``.

The results are those of :mod:`tests.unit_tests.ranks`. Everybody makes everybody's inputs, so that what a rank must
find is computed by one process in float64.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.ops import parallel_linear, registry
from tests.unit_tests.ops.checks import relative_error
from tests.unit_tests.ranks import check_all, fork_ranks, join

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """One layer and what is asked of it.

    Attributes:
        rows: of one rank.
        accumulates: the weight's gradient is added to a float32 tensor.
        runs: the variant that must have taken the call.
    """

    variant: str
    column: bool
    rows: int
    inner: int
    outer: int
    dtype: torch.dtype
    frozen: bool = False
    accumulates: bool = False
    runs: str = ""


def _cases(kind: str) -> Iterator[Case]:
    for column in (True, False):
        if kind == "npu":
            for rows in (1, 7):
                yield Case("npu", column, rows, 256, 260, torch.bfloat16)
            yield Case("npu", column, 6, 300, 257, torch.float16)
            yield Case("npu", column, 6, 258, 256, torch.bfloat16, frozen=True)
            yield Case("npu", column, 6, 258, 256, torch.bfloat16, accumulates=True)
            yield Case("npu", column, 5, 255, 256, torch.bfloat16, runs="torch")
            yield Case("npu", column, 5, 256, 255, torch.bfloat16, runs="torch")
            yield Case("npu", column, 5, 256, 256, torch.float32, runs="torch")
            yield Case("npu", column, 0, 256, 256, torch.bfloat16, runs="torch")
            continue
        for variant in ("torch", "reference"):
            for dtype in (torch.float64, torch.float32, torch.bfloat16):
                yield Case(variant, column, 7, 12, 5, dtype)
            for rows in (0, 1, 2, 8):
                yield Case(variant, column, rows, 3, 16, torch.float32)
            yield Case(variant, column, 5, 9, 4, torch.float32, frozen=True)
            yield Case(variant, column, 5, 9, 4, torch.bfloat16, accumulates=True)


def check(case: Case, kind: str, device: torch.device, generator: torch.Generator) -> None:
    """Result, gradients and bytes of one case on this rank."""
    registry.select(kind, {"parallel_linear": case.variant} if case.variant != "npu" else None)
    group = dist.group.WORLD
    size, rank = group.size(), group.rank()
    whole = size * case.rows

    def random(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator).to(case.dtype)

    x = random(case.rows if case.column else whole, case.inner)
    weight = random(case.outer, case.inner) / case.inner**0.5
    grad_y = random(whole if case.column else case.rows, case.outer)
    y, grad_x, grad_weight = (t[rank] for t in _expected(case.column, x.double(), weight.double(), grad_y.double()))

    mine = x[rank].detach().to(device).requires_grad_()
    own_weight = weight[rank].detach().to(device).requires_grad_(not case.frozen)
    main_grad = torch.randn(own_weight.shape, generator=generator).to(device) if case.accumulates else None
    before = main_grad.clone() if case.accumulates else None
    function = parallel_linear.all_gather_linear if case.column else parallel_linear.linear_reduce_scatter
    with counted_bytes() as sent:
        found = function(mine, own_weight, group, main_grad)
        found.backward(grad_y[rank].to(device))

    tolerance = TOLERANCES.get(case.dtype, 2e-2)
    (taken,) = registry.report()["parallel_linear"]["calls"].values()
    assert taken == {case.runs or case.variant: 1}
    assert found.dtype == mine.grad.dtype == case.dtype
    assert relative_error(found.detach().cpu(), y) <= tolerance
    assert relative_error(mine.grad.cpu(), grad_x) <= tolerance
    if case.frozen:
        assert own_weight.grad is None
    elif main_grad is not None:
        assert own_weight.grad is None
        assert relative_error((main_grad - before).cpu(), grad_weight) <= tolerance
    else:
        assert relative_error(own_weight.grad.cpu(), grad_weight) <= tolerance
    if case.variant == "torch":
        once = whole * (case.inner if case.column else case.outer) * mine.element_size()
        passes = 3 if case.column and not case.frozen else 2
        assert sum(sent) == passes * once, (sent, once)


def _expected(column: bool, x: Tensor, weight: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Results and gradients of all ranks, one above the other."""
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = x.flatten(0, 1) @ weight.mT if column else (x @ weight.mT).sum(0).view(grad_y.shape)
    y.backward(grad_y)
    return y.detach(), x.grad, weight.grad


@contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """The bytes of the larger side of each all-gather and reduce-scatter."""
    sent: list[int] = []

    def counting(function: Callable, larger: int) -> Callable:
        def call(*args, **kwargs):
            sent.append(args[larger].nbytes)
            return function(*args, **kwargs)

        return call

    names = {"all_gather_into_tensor": 0, "reduce_scatter_tensor": 1}
    originals = {name: getattr(dist, name) for name in names}
    for name, larger in names.items():
        setattr(dist, name, counting(originals[name], larger))
    try:
        yield sent
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def run(rank: int, size: int, kind: str, folder: Path, seed: int) -> None:
    """One rank."""
    device = join(kind, rank, size, folder)
    checks = (
        (str(case), partial(check, case, kind, device, torch.Generator().manual_seed(seed + i)))
        for i, case in enumerate(_cases(kind))
    )
    check_all(checks, rank, folder)


if __name__ == "__main__":
    size, folder, seed, kind = sys.argv[1:]
    fork_ranks(int(size), run, int(size), kind, Path(folder), int(seed))
