"""One rank of the vocabulary parallel test: ``vocab_parallel_worker.py RANK SIZE FOLDER``.

Reads ``inputs.pt`` from the folder, computes this rank's part on its NPU and leaves ``rank<R>.pt`` there.
"""

import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from ascend_patch.ops.cross_entropy import npu
from tests.unit_tests.ops.checks import results_and_gradients


def main(rank: int, size: int, folder: Path) -> None:
    """Loss and gradient of every case."""
    device = torch.device("npu", rank)
    torch.npu.set_device(device)
    dist.init_process_group(
        "hccl", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    results = []
    for logits, target, grad_loss in torch.load(folder / "inputs.pt"):
        part = logits.shape[-1] // size
        loss = partial(npu.cross_entropy, group=dist.group.WORLD, vocab_start=rank * part)
        mine = [logits[..., rank * part : (rank + 1) * part].to(device), target.to(device)]
        value, (gradient,) = results_and_gradients(loss, mine, grad_loss.to(device))
        results.append((value.cpu(), gradient.cpu()))
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
