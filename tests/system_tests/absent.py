"""``absent.py RANK CALL ARGUMENTS…``: a training job in which rank RANK never enters a collective.

In place of its CALL-th ``all_to_all_single`` it sleeps, for longer than any timeout.
"""

import os
import runpy
import sys
import time
from itertools import count

import torch

from ascend_patch.run import BUNDLED


def main() -> None:
    """The job; see the module's docstring."""
    rank, call = sys.argv.pop(1), int(sys.argv.pop(1))
    if os.environ["RANK"] == rank:
        original, calls = torch.distributed.all_to_all_single, count(1)

        def all_to_all_single(*args, **kwargs):
            if next(calls) == call:
                print(f"rank {rank} stays away", flush=True)
                time.sleep(3600)
            return original(*args, **kwargs)

        torch.distributed.all_to_all_single = all_to_all_single
    runpy.run_path(str(BUNDLED), run_name="__main__")


if __name__ == "__main__":
    main()
