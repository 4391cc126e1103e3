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

import torch
import torch.distributed as dist

WAIT = timedelta(seconds=60)
"""How long a rank waits for the others: far more than any check takes, far less than a test's own limit."""


def run_worker(module: str, kind: str, ranks: int, folder: Path, **variables: str) -> list[dict[str, str | None]]:
    """For tests: ``python -m MODULE KIND RANKS FOLDER SEED``, whose results of all ranks hold no failure."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    environment = {**os.environ, "ASCEND_SIM_DEVICES": str(ranks), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", module, kind, str(ranks), str(folder), str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    results = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    failures = [f"rank {rank}, {name}\n{e}" for rank, found in enumerate(results) for name, e in found.items() if e]
    assert not failures, "\n".join(failures)
    return results


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
