"""What activation adds to ``import megatron.training``: whole processes with and without ``ASCEND_PATCH=1``."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.statistics import Sample
from benchmarks.worker import ROOT, WorkerError

_STATEMENT = "import torch, megatron.training"


@dataclass(frozen=True)
class ActivationCost:
    """Seconds of a process that imports Megatron, and what activation added to it, pair by pair."""

    plain: Sample
    activated: Sample
    difference: Sample


def measure(pairs: int, progress: Callable[[str], None]) -> ActivationCost:
    """Run ``pairs`` pairs of processes after one of each that only fills the caches.

    Raises:
        WorkerError: an import failed.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ASCEND_PATCH")}
    activated = {**kept, "ASCEND_PATCH": "1", "ASCEND_PATCH_DEVICE": "cpu"}
    _import_time(kept)
    _import_time(activated)
    times = []
    for pair in range(pairs):
        times.append((_import_time(kept), _import_time(activated)))
        progress(f"import: pair {pair + 1} of {pairs}")
    return ActivationCost(
        Sample.of([plain for plain, _ in times]),
        Sample.of([patched for _, patched in times]),
        Sample.of([patched - plain for plain, patched in times]),
    )


def _import_time(environment: dict[str, str]) -> float:
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", _STATEMENT], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if result.returncode:
        raise WorkerError(f"`{_STATEMENT}` failed:\n{result.stderr[-2000:]}")
    return seconds
