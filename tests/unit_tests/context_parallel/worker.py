"""Every case in a group of processes: ``worker.py DEVICE SIZE FOLDER SEED``.

Imports torch once and forks. Each rank leaves ``rank<R>.json`` in the folder: name of the case -> None or its
traceback.
After an error, unlike a wrong result, the ranks may be out of step, so that what follows is not run.
"""

import json
import multiprocessing
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from ascend_patch.ops import registry
from ascend_patch.ops.attention import blockwise
from tests.unit_tests.context_parallel import cases


def run(kind: str, rank: int, size: int, folder: Path, seed: int) -> None:
    """One rank."""
    torch.set_num_threads(1)
    blockwise._BLOCK_SCORES, blockwise._LEAST_QUERIES = 100, 3  # several blocks, small as the inputs are
    device = torch.device(kind, rank) if kind == "npu" else torch.device(kind)
    if kind == "npu":
        torch.npu.set_device(device)
    registry.select(kind)
    store = f"file://{folder}/store"
    backend = "hccl" if kind == "npu" else "gloo"
    dist.init_process_group(backend, store, timedelta(seconds=60), rank=rank, world_size=size)
    groups = cases.Groups()
    results = {}
    for i, (name, case) in enumerate(cases.CASES.items()):
        if case.ranks > size:
            continue
        results[name] = None
        try:
            cases.check(case, groups, torch.Generator().manual_seed(seed + i), device)
        except AssertionError:
            results[name] = traceback.format_exc()
        except Exception:
            results[name] = traceback.format_exc()
            break
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def main(kind: str, size: int, folder: Path, seed: int) -> None:
    """Fork the ranks and wait for them."""
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run, args=(kind, rank, size, folder, seed)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in ranks))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
