"""Checks of what PyTorch builds on collectives, for collectives_worker.py: each rank also computes all by itself."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

STEPS = 3


def model(world, dtype=torch.float32):
    torch.manual_seed(world.seed)
    layers = nn.Sequential(nn.Linear(7, 33), nn.GELU(), nn.Linear(33, 5, bias=False))
    return layers.to(world.device, dtype)


def batches(world, step):
    """The inputs of all ranks in one step, of `4 * size` rows."""
    generator = torch.Generator().manual_seed(world.seed + step)
    return torch.randn(4 * world.size, 7, generator=generator).to(world.device)


def train(module, inputs):
    """Losses and parameters of a few steps of SGD."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for x in inputs:
        loss = module(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses), [parameter.detach() for parameter in module.parameters()]


def compare(world, trained, tolerance=1e-5):
    """`trained` on this rank's rows is one process trained on all of them."""
    losses, parameters = trained
    dist.all_reduce(losses, op=dist.ReduceOp.AVG)
    alone, expected = train(model(world), [batches(world, step) for step in range(STEPS)])
    torch.testing.assert_close(losses.cpu(), alone.cpu(), rtol=tolerance, atol=tolerance)
    for actual, wanted in zip(parameters, expected, strict=True):
        whole = actual.full_tensor() if isinstance(actual, DTensor) else actual
        torch.testing.assert_close(whole.cpu(), wanted.cpu(), rtol=tolerance, atol=tolerance)


def own(world):
    return [batches(world, step).chunk(world.size)[world.rank] for step in range(STEPS)]


def check_ddp(world):
    compare(world, train(DistributedDataParallel(model(world), device_ids=[world.rank]), own(world)))


def check_ddp_with_a_hook_and_small_buckets(world):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    parallel = DistributedDataParallel(model(world), bucket_cap_mb=0.0005, broadcast_buffers=False)
    parallel.register_comm_hook(None, allreduce_hook)
    compare(world, train(parallel, own(world)))


def check_fully_shard(world):
    mesh = init_device_mesh("npu", (world.size,))
    sharded = model(world)
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer, mesh=mesh)
    compare(world, train(sharded, own(world)))


def check_fully_shard_in_bfloat16(world):
    sharded = model(world)
    fully_shard(sharded, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
    inputs = [x.bfloat16() for x in own(world)]
    losses, parameters = train(sharded, inputs)
    compare(world, (losses.float(), parameters), tolerance=3e-2)


def check_dtensor(world):
    mesh = init_device_mesh("npu", (world.size,))
    generator = torch.Generator().manual_seed(world.seed)
    a, b = torch.randn(5, 6, generator=generator), torch.randn(6, 7, generator=generator)
    expected = a @ b
    columns, rows = ([Shard(1)], [Shard(0)])
    product = distribute_tensor(a.to(world.device), mesh, columns) @ distribute_tensor(b.to(world.device), mesh, rows)
    assert product.placements[0].is_partial()
    for placement in (Replicate(), Shard(0), Shard(1)):
        moved = product.redistribute(mesh, [placement])
        assert moved.placements == (placement,)
        torch.testing.assert_close(moved.full_tensor().cpu(), expected)
    swapped = product.redistribute(mesh, rows).redistribute(mesh, columns)
    torch.testing.assert_close(swapped.full_tensor().cpu(), expected)
