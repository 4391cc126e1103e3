"""Run the bundled entry and print what rank 0 gathered, scattered and exchanged: calls and bytes by group.

For test_tp_comm_overlap.py and test_expert_overlap.py.
"""

import json
import os
import runpy
from collections.abc import Callable

import torch.distributed as dist

from ascend_patch.run import BUNDLED


def count(method: str, whole: int) -> None:
    """Count the calls of a method of ``ProcessGroup``, and the bytes of one of its tensors: what is sent, or more."""
    original: Callable = getattr(dist.ProcessGroup, method)

    def call(group: dist.ProcessGroup, *args):
        calls, total = sent.get(group.group_desc, (0, 0))
        sent[group.group_desc] = (calls + 1, total + args[whole].nbytes)
        return original(group, *args)

    setattr(dist.ProcessGroup, method, call)


if __name__ == "__main__":
    sent: dict[str, tuple[int, int]] = {}
    count("_allgather_base", 0)
    count("_reduce_scatter_base", 1)
    count("alltoall_base", 1)
    try:
        runpy.run_path(str(BUNDLED), run_name="__main__")
    finally:
        if os.environ["RANK"] == "0":
            print("sent:", json.dumps(sent), flush=True)
