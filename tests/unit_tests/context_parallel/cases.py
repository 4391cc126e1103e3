"""Attention over a sequence that is split between ranks, against that of one rank in float64."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.context_parallel.gathered import gathered_attention
from ascend_patch.context_parallel.heads import heads_attention
from ascend_patch.context_parallel.layout import positions_of_rank
from ascend_patch.context_parallel.ring import ring_attention
from ascend_patch.ops.attention import reference
from tests.unit_tests.ops.checks import LargestTensor, results_and_gradients

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SIZE = 8
LONG = 256
"""From so many tokens of a piece on, a mask or scores of a rank's tokens x a rank's tokens are larger than all else."""


@dataclass(frozen=True)
class Case:
    """One call; ``length`` is the number of tokens of each of the ``2 * ranks`` pieces."""

    type: str
    ranks: int
    heads: int
    groups: int
    batch: int = 2
    length: int = 3
    causal: bool = True
    window: tuple[int, int] | None = None
    packed: tuple[int, ...] | None = None
    """Lengths of packed sequences, each in tokens of a piece."""
    dtype: torch.dtype = torch.float32
    hierarchy: tuple[int, int] | None = None

    def __str__(self) -> str:
        words = [self.type, *(f"{n}{getattr(self, name)}" for n, name in (("cp", "ranks"), ("h", "heads")))]
        words += [f"s{self.length}"] if self.length >= LONG else []
        words += [f"g{self.groups}", f"b{self.batch}", "causal" if self.causal else "full"]
        words += [str(x).replace(" ", "") for x in (self.window, self.packed, self.hierarchy) if x is not None]
        return "-".join([*words, str(self.dtype).removeprefix("torch.")])


def _cases() -> list[Case]:
    found = []
    for ranks in (2, 4, 8):
        # Odd head counts, grouped queries, one head; a2a needs a multiple of the ranks.
        for kind in ("p2p", "allgather"):
            found += [Case(kind, ranks, 5, 5), Case(kind, ranks, 6, 2, batch=3), Case(kind, ranks, 3, 1, batch=1)]
            found += [Case(kind, ranks, 4, 2, causal=False), Case(kind, ranks, 4, 2, length=1)]
        found += [Case("a2a", ranks, n * ranks, g, batch=b) for n, g, b in ((1, 1, 2), (3, ranks, 1), (3, 3, 3))]
        found += [Case("a2a", ranks, 2 * ranks, 2, causal=False), Case("a2a", ranks, ranks, ranks, length=1)]
        for kind, heads in (("a2a", 2 * ranks), ("allgather", 6)):
            found += [Case(kind, ranks, heads, 2, window=window) for window in ((4, 0), (100, 0), (1, 0))]
            found += [Case(kind, ranks, heads, 2, batch=0, packed=(1, 3, 2), window=w) for w in (None, (5, 0))]
            found += [Case(kind, ranks, heads, 2, batch=0, packed=(2, 1), causal=False)]
            found += [Case(kind, ranks, heads, 2, batch=0, length=1, packed=(1, 0, 5, 1, 1, 0, 2))]
        found += [Case(kind, ranks, 2 * ranks, 2, dtype=torch.bfloat16) for kind in ("p2p", "allgather", "a2a")]
    for kind in ("p2p", "a2a", "allgather"):
        found += [Case(kind, 2, 2, 2, batch=1, length=LONG), Case(kind, 2, 2, 1, batch=1, length=LONG, causal=False)]
    for kind in ("a2a", "allgather"):
        found += [Case(kind, 2, 2, 1, batch=1, length=LONG, window=(300, 0))]
        found += [Case(kind, 2, 2, 1, batch=0, length=LONG, packed=(1, 1), window=(70, 0))]
    for hierarchy in ((2, 1), (1, 2), (2, 2), (4, 1), (2, 4), (4, 2)):
        ranks = hierarchy[0] * hierarchy[1]
        found += [Case("a2a+p2p", ranks, 12, g, hierarchy=hierarchy) for g in (2, 3, 12)]
        found += [Case("a2a+p2p", ranks, 4, 2, hierarchy=hierarchy, causal=False)]
    return found


CASES = {str(case): case for case in _cases()}


class Groups:
    """The process groups of the first ranks; made once, by every rank alike."""

    def __init__(self) -> None:
        cases = [case for case in CASES.values() if case.ranks <= dist.get_world_size()]
        sizes = {case.ranks for case in cases}
        self.of_size = {size: dist.new_group(range(size)) for size in sorted(sizes)}
        hierarchies = {case.hierarchy for case in cases if case.hierarchy is not None}
        self.levels: dict[tuple[int, int], list[dist.ProcessGroup]] = {}
        for inner, outer in sorted(hierarchies):
            low = [dist.new_group(range(i * inner, (i + 1) * inner)) for i in range(outer)]
            high = [dist.new_group(range(i, inner * outer, inner)) for i in range(inner)]
            if dist.get_rank() < inner * outer:
                self.levels[inner, outer] = [low[dist.get_rank() // inner], high[dist.get_rank() % inner]]


def check(case: Case, groups: Groups, generator: torch.Generator, device: torch.device) -> None:
    """Output and gradients of this rank's part; ranks beyond the group do nothing."""
    rank = dist.get_rank()
    shapes = [case.heads, case.groups, case.groups]
    lengths = [n * case.length * 2 * case.ranks for n in case.packed or (1,)]
    between = (sum(lengths),) if case.packed else (sum(lengths), case.batch)
    tensors = [torch.randn(*between, n, SIZE, generator=generator).to(case.dtype) for n in shapes]
    grad = torch.randn(*between, case.heads * SIZE, generator=generator).to(case.dtype)
    if rank >= case.ranks:
        return
    options = {"scale": 0.3, "causal": case.causal}
    whole = partial(reference.attention, window=case.window, **options)
    if case.packed:
        ends = torch.tensor([0, *accumulate(lengths)])
        whole = partial(reference.attention_thd, cu_seqlens_q=ends, cu_seqlens_kv=ends, window=case.window, **options)
    expected, expected_gradients = results_and_gradients(whole, [t.double() for t in tensors], grad)

    own_positions = positions_of_rank([0, *accumulate(lengths)], case.ranks, rank)

    def mine(t: Tensor) -> Tensor:
        return t[own_positions]

    split = partial(_function(case, groups, lengths), **options)
    parts = [mine(t).to(device) for t in tensors]
    with LargestTensor() as largest:
        output, gradients = results_and_gradients(split, parts, mine(grad).to(device))
    if case.length >= LONG:
        assert largest.numel < (2 * case.length) ** 2, largest.numel
    for found, wanted in zip([output, *gradients], [expected, *expected_gradients], strict=True):
        assert found.dtype == case.dtype
        # Relative to the largest entry of the whole: a rank's part may be small.
        error = ((found.cpu().double() - mine(wanted)).abs().max() / wanted.abs().max()).item()
        assert error <= TOLERANCES[case.dtype], error


def _function(case: Case, groups: Groups, lengths: Sequence[int]):
    group = groups.of_size[case.ranks]
    if case.type == "p2p":
        return partial(ring_attention, group=group)
    if case.type == "a2a+p2p":
        low, high = groups.levels[case.hierarchy]
        return partial(heads_attention, group=low, attend=partial(ring_attention, group=high))
    function = heads_attention if case.type == "a2a" else gathered_attention
    return partial(
        function, group=group, window=case.window, cu_seqlens=[0, *accumulate(lengths)] if case.packed else None
    )
