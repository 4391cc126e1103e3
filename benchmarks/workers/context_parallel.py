"""Memory of attention over a split sequence, on as many simulated NPUs as there are ranks.

``FILE RANKS TYPE LENGTH…`` runs forward and backward for each length and writes ``{length: [kept, peak]}`` of the rank
that needs most: the bytes that are kept between forward and backward, and the most there are at any time, as
torch_npu's allocator was asked for them. Queries, keys, values and their gradients are in it; the mask of
npu_fusion_attention, 4 MiB for all layers and lengths, is not. Attention stands between projections that keep what they
keep in a layer: the one before it nothing of its result, the one after it its input.
"""

import json
import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
    own = [_bytes(function, length // ranks) for length in lengths]
    of_ranks: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
    dist.all_gather_object(of_ranks, own)
    if rank == 0:
        most = [[max(figures) for figures in zip(*of_length, strict=True)] for of_length in zip(*of_ranks, strict=True)]
        target.write_text(json.dumps(dict(zip(lengths, most, strict=True))))
    dist.destroy_process_group()


def _bytes(function: Callable[..., Tensor], length: int) -> tuple[int, int]:
    """Kept, peak."""
    npu = torch.npu  # type: ignore[attr-defined]
    size = ATTENTION_HEADS[2]
    triangle(torch.device("npu", npu.current_device()))
    npu.empty_cache()  # waits for what is still sent
    npu.reset_peak_memory_stats()
    before = npu.memory_stats()["requested_bytes.all.current"]
    tensors = _ProjectionBefore.apply(torch.zeros((), requires_grad=True), length)
    result = _ProjectionAfter.apply(function(*tensors, scale=size**-0.5, causal=True))
    del tensors
    npu.empty_cache()
    kept = npu.memory_stats()["requested_bytes.all.current"] - before
    result.backward()
    return kept, npu.memory_stats()["requested_bytes.all.peak"] - before


class _ProjectionBefore(torch.autograd.Function):
    """Queries, keys and values of so many tokens."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, length: int) -> tuple[Tensor, ...]:
        heads, groups, size = ATTENTION_HEADS
        return tuple(
            torch.zeros(length, 1, n, size, dtype=torch.bfloat16, device="npu") for n in (heads, groups, groups)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


class _ProjectionAfter(torch.autograd.Function):
    """Keeps its input until it has handed back a gradient."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        ctx.save_for_backward(t)
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        return torch.ones_like(t)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], [int(length) for length in sys.argv[4:]])
