"""Loads a torch_dist checkpoint with `megatron.core.dist_checkpointing`, on one rank, and saves what it got.

    python dist_loader.py CHECKPOINT OUTPUT

OUTPUT is a file of torch.save. Tensor `stacked` (layers, rows, columns) is loaded layer by layer in halves of its rows,
tensor `plain` whole, and an object for each layer. An entry of CHECKPOINT that is not asked for, or one that is not
there, is an error.
"""

import sys

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.validation import StrictHandling


def main(folder: str, output: str) -> None:
    store = torch.distributed.FileStore(f"{output}.store", 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    whole = dist_checkpointing.load_tensors_metadata(folder)
    layers, rows, cols = whole["stacked"].global_shape
    plain = torch.zeros(whole["plain"].global_shape, dtype=whole["plain"].dtype)
    wanted = {
        f"{layer}.{half}": ShardedTensor.from_rank_offsets(
            "stacked",
            torch.zeros(rows // 2, cols, dtype=whole["stacked"].dtype),
            (0, layer, layers),
            (1, half, 2),
            prepend_axis_num=1,
        )
        for layer in range(layers)
        for half in range(2)
    }
    objects = {f"{layer}.object": ShardedObject("_extra_state", None, (layers,), (layer,)) for layer in range(layers)}
    loaded = dist_checkpointing.load(
        {"plain": ShardedTensor.from_rank_offsets("plain", plain), **wanted, **objects},
        folder,
        strict=StrictHandling.RAISE_ALL,
    )
    stacked = [torch.cat([loaded.pop(f"{layer}.{half}") for half in range(2)]) for layer in range(layers)]
    torch.save({"stacked": torch.stack(stacked), **loaded}, output)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
