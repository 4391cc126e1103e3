"""Peak memory of attention over a split sequence, on as many simulated NPUs as there are ranks.

``FILE RANKS TYPE LENGTH…`` runs forward and backward for each length and writes ``{length: bytes}`` of rank 0. The
bytes are those that torch_npu's allocator handed out at most, queries, keys, values and their gradients included. The
mask of npu_fusion_attention, 4 MiB for all layers and lengths, is not.
"""

import json
import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.context_parallel.gathered import gathered_attention
from ascend_patch.context_parallel.heads import heads_attention
from ascend_patch.context_parallel.ring import ring_attention
from ascend_patch.ops import registry
from ascend_patch.ops.attention import attention
from ascend_patch.ops.attention.npu import triangle
from benchmarks.workload import ATTENTION_HEADS

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "p2p": ring_attention,
    "a2a": heads_attention,
    "allgather": gathered_attention,
}


def main(target: Path, ranks: int, kind: str, lengths: list[int]) -> None:
    """Fork the ranks and wait for them."""
    fork = multiprocessing.get_context("fork")
    with TemporaryDirectory() as folder:
        processes = [
            fork.Process(target=_rank, args=(target, f"file://{folder}/store", rank, ranks, kind, lengths))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    sys.exit(any(process.exitcode for process in processes))


def _rank(target: Path, store: str, rank: int, ranks: int, kind: str, lengths: list[int]) -> None:
    torch.set_num_threads(1)
    torch.npu.set_device(rank)  # type: ignore[attr-defined]  # torch_npu adds it
    registry.select("npu")
    dist.init_process_group("hccl", store, rank=rank, world_size=ranks)
    function = attention if ranks == 1 else partial(FUNCTIONS[kind], group=dist.group.WORLD)
    peaks = {length: _peak(function, length // ranks) for length in lengths}
    if rank == 0:
        target.write_text(json.dumps(peaks))
    dist.barrier()
    dist.destroy_process_group()


def _peak(function: Callable[..., Tensor], length: int) -> int:
    npu = torch.npu  # type: ignore[attr-defined]
    heads, groups, size = ATTENTION_HEADS
    triangle(torch.device("npu", npu.current_device()))
    before: int = npu.memory_allocated()
    tensors = [
        torch.randn(length, 1, n, size, dtype=torch.bfloat16, device="npu", requires_grad=True)
        for n in (heads, groups, groups)
    ]
    npu.reset_peak_memory_stats()
    output = function(*tensors, scale=size**-0.5, causal=True)
    output.backward(torch.ones_like(output))
    peak: int = npu.max_memory_allocated() - before
    return peak


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], [int(length) for length in sys.argv[4:]])
