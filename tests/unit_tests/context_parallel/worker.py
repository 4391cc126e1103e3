"""Every case in a group of processes: ``worker.py SIZE FOLDER SEED DEVICE``, with the results of :mod:`ranks`."""

import sys
from functools import partial
from pathlib import Path

import torch

from ascend_patch.ops import registry
from ascend_patch.ops.attention import blockwise
from tests.unit_tests.context_parallel import cases
from tests.unit_tests.ranks import check_all, fork_ranks, join


def run(rank: int, size: int, kind: str, folder: Path, seed: int) -> None:
    """One rank."""
    device = join(kind, rank, size, folder)
    blockwise._BLOCK_SCORES, blockwise._LEAST_QUERIES = 100, 3  # several blocks, small as the inputs are
    registry.select(kind)
    groups = cases.Groups()
    checks = (
        (name, partial(cases.check, case, groups, torch.Generator().manual_seed(seed + i), device))
        for i, (name, case) in enumerate(cases.CASES.items())
        if case.ranks <= size
    )
    check_all(checks, rank, folder)


if __name__ == "__main__":
    size, folder, seed, kind = sys.argv[1:]
    fork_ranks(int(size), run, int(size), kind, Path(folder), int(seed))
