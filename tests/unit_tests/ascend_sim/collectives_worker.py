"""Runs checks in a group of processes on the simulated device, one process for each rank.

``collectives_worker.py SIZE DIRECTORY SEED MODULE...`` imports torch once and forks. Each rank runs the functions
``check_…`` of the modules in their order and leaves ``rank<R>.json``: name of the check -> None or its traceback.
After a failure the ranks may be out of step, so that what follows is not run; a check that is missing in a file failed
too.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from tests.unit_tests.ranks import WAIT, fork_ranks


class World(NamedTuple):
    """What a check is told."""

    rank: int
    size: int
    device: torch.device
    seed: int

    def generator(self, rank: int) -> torch.Generator:
        """The random numbers of one rank: everybody can make everybody's inputs."""
        return torch.Generator().manual_seed(self.seed * 1000 + rank)


def checks(modules):
    """The functions ``check_…`` of the modules, as the files have them: name -> function."""
    loaded = [importlib.import_module(f"tests.unit_tests.ascend_sim.{module}") for module in modules]
    return {
        name.removeprefix("check_"): function
        for module in loaded
        for name, function in vars(module).items()
        if name.startswith("check_")
    }


def run(rank, size, directory, seed, functions):
    """One rank, from the first group to the file of its results."""
    torch.npu.set_device(rank)
    device = torch.device("npu", rank)
    method = f"file://{directory}/rendezvous"
    dist.init_process_group("hccl", method, WAIT, rank=rank, world_size=size, device_id=device)
    world = World(rank, size, device, seed)
    results = {}
    for name, function in functions.items():
        results[name] = None
        try:
            function(world)
        except Exception:
            results[name] = traceback.format_exc()
            break
    (directory / f"rank{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    size, directory, seed, *modules = sys.argv[1:]
    fork_ranks(int(size), run, int(size), Path(directory), int(seed), checks(modules))
