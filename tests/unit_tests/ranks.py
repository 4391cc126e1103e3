"""Checks in a group of processes, one for each rank, with one import of torch: for tests and for their workers."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

WAIT = timedelta(seconds=60)
"""How long a rank waits for the others: far more than any check takes, far less than a test's own limit."""


Results = list[dict[str, str | None]]
"""Of each rank: name of the case -> None or its traceback."""


def run_worker(
    module: str, ranks: int, folder: Path, *arguments: str, timeout: float = 240, **variables: str
) -> Results:
    """For tests: ``python -m MODULE RANKS FOLDER SEED ARGUMENTS``, and the results that its ranks leave."""
    seed = random.randrange(10**6)
    print(f"{ranks} ranks, seed {seed}")
    environment = {**os.environ, "ASCEND_SIM_DEVICES": str(ranks), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", module, str(ranks), str(folder), str(seed), *arguments]
    log = folder / "output"
    with log.open("w") as output:
        code = subprocess.run(command, env=environment, stdout=output, stderr=output, timeout=timeout).returncode
    files = [folder / f"rank{rank}.json" for rank in range(ranks)]
    results = [json.loads(file.read_text()) for file in files if file.exists()]
    told = any(error for result in results for error in result.values())
    if len(results) < ranks or (code and not told):
        pytest.fail(f"{ranks} ranks, seed {seed}: exit status {code}\n{log.read_text()[-4000:]}")
    return results


def require_passed(results: Results, name: str) -> None:
    """Fail unless all ranks ran the case, and found nothing."""
    for rank, result in enumerate(results):
        assert name in result, f"rank {rank} did not get there: {[e for e in result.values() if e]}"
        assert result[name] is None, f"rank {rank}: {result[name]}"


def require_all_passed(results: Results, least: int) -> None:
    """:func:`require_passed` of every case, of which there are ``least`` or more."""
    assert len(results[0]) >= least
    for name in results[0]:
        require_passed(results, name)


def fork_ranks(size: int, run: Callable[..., None], *args: Any) -> None:
    """``run(rank, *args)`` in a process for each rank; exits with the worst of their codes."""
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run, args=(rank, *args)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in ranks))


def join(kind: str, rank: int, size: int, folder: Path) -> torch.device:
    """Make the default group, on gloo or, with ``kind`` "npu", on hccl; returns this rank's device."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if kind == "npu":
        device = torch.device(kind, rank)
        torch.npu.set_device(device)
    backend = "hccl" if kind == "npu" else "gloo"
    dist.init_process_group(backend, f"file://{folder}/store", WAIT, rank=rank, world_size=size)
    return device


def check_all(cases: Iterable[tuple[str, Callable[[], None]]], rank: int, folder: Path) -> None:
    """Leave ``rank<R>.json`` in the folder, name of the case -> None or its traceback; then end the group.

    After an error, unlike a wrong result, the ranks may be out of step, so that what follows is not run.
    """
    results: dict[str, str | None] = {}
    for name, check in cases:
        results[name] = None
        try:
            check()
        except AssertionError:
            results[name] = traceback.format_exc()
        except Exception:
            results[name] = traceback.format_exc()
            break
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
