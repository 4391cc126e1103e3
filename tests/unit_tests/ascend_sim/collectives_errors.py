"""Checks of what hccl refuses and how it says so, for collectives_worker.py. The last ones leave groups unusable."""

import datetime
import importlib
import re

import torch
import torch.distributed as dist
from torch.distributed import ReduceOp


def expect(pattern, function, kind=RuntimeError):
    """The call raises, and the message has the pattern."""
    try:
        function()
    except kind as error:
        assert re.search(pattern, str(error)), f"{pattern!r} is not in: {error}"
    else:
        raise AssertionError(f"accepted; expected {pattern!r}")


def check_refused_tensors(world):
    x = torch.ones(4, 6, device=world.device)
    where = rf"on rank {world.rank} \(rank {world.rank} of {world.size} in group default_pg\): "
    refused = {
        where + ".*strides": lambda: dist.all_reduce(x.t()),
        "broadcast.*strides.*contiguous": lambda: dist.broadcast(x[:, ::2], 0),
        "Float8_e4m3fnuz": lambda: dist.broadcast(x.to(torch.float8_e4m3fnuz), 0),
        "all_reduce.*Double": lambda: dist.all_reduce(x.double()),
        "reduce_scatter_tensor.*Byte": lambda: dist.reduce_scatter_tensor(x.byte()[:2], x.byte()),
        "cpu": lambda: dist.all_reduce(x.cpu()),
        "all_gather .*cpu": lambda: dist.all_gather([torch.ones(4, 6)] * world.size, x),
        "all_gather .*24 elements.*4 to this rank": lambda: dist.all_gather(list(x.new_empty(world.size, 4)), x),
        "all_gather_into_tensor.*24 elements": lambda: dist.all_gather_into_tensor(x.clone(), x),
        "reduce_scatter_tensor.*24 elements": lambda: dist.reduce_scatter_tensor(x.clone(), x),
        "all_to_all_single.*split sizes": lambda: dist.all_to_all_single(
            x.clone(), x, [1] * world.size, [1] * world.size
        ),
        "all_to_all_single.*3 rows": lambda: dist.all_to_all_single(x[:3].clone(), x[:3].clone()),
        "reduce_scatter_tensor.*same dtype": lambda: dist.reduce_scatter_tensor(x[:2], x.half()),
    }
    for pattern, call in refused.items():
        expect(pattern, call)


def check_refused_reductions(world):
    x = torch.ones(4, device=world.device)
    for op in (ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR):
        expect("bitwise", lambda op=op: dist.all_reduce(x.int(), op=op))
    expect("PREMUL_SUM", lambda: dist.all_reduce(x, op=dist._make_nccl_premul_sum(0.5)))
    expect("AVG of Int", lambda: dist.all_reduce(x.int(), op=ReduceOp.AVG))
    expect("PRODUCT of BFloat16", lambda: dist.all_reduce(x.bfloat16(), op=ReduceOp.PRODUCT))


def check_refused_products(world):
    torch_npu = importlib.import_module("torch_npu")
    name = dist.group.WORLD._get_backend(world.device).get_hccl_comm_name(world.rank)
    x, weight = (torch.ones(shape, device=world.device).bfloat16() for shape in ((5, 256), (256, 3)))
    for product in (torch_npu.npu_all_gather_base_mm, torch_npu.npu_mm_reduce_scatter_base):
        expect("which is no group's communicator", lambda f=product: f(x, weight, "another", world.size))
        expect("world_size is 32, the group has", lambda f=product: f(x, weight, name, 32))
    expect("5 rows, needed: a multiple", lambda: torch_npu.npu_mm_reduce_scatter_base(x, weight, name, world.size))
    x, weight = x.new_ones(8 * 4096, 256), x.new_ones(1, 256, 1)
    for product in (torch_npu.npu_alltoallv_gmm, torch_npu.npu_gmm_alltoallv):
        expect("no group's communicator", lambda f=product: f(x, weight, "another", 8, [4096] * 8, [4096] * 8))
        expect(
            f"ep_world_size is 8, the group has {world.size}",
            lambda f=product: f(x, weight, name, 8, [4096] * 8, [4096] * 8),
        )


def check_refused_peers_and_backends(world):
    x = torch.ones(4, device=world.device)
    expect("itself", lambda: dist.distributed_c10d._get_default_group().send([x], world.rank, 0))
    expect("ranks 0 to", lambda: dist.distributed_c10d._get_default_group().send([x], world.size, 0))
    expect("named rank", lambda: dist.recv(x))
    expect(
        "gather.*compatible", lambda: dist.distributed_c10d._get_default_group().gather([], [x], dist.GatherOptions())
    )
    expect("lccl is not simulated", lambda: dist.new_group(backend="lccl"))


def check_options_of_the_wrong_type(world):
    from torch_npu._C._distributed_c10d import ProcessGroupHCCL

    options = ProcessGroupHCCL.Options()
    options.hccl_config = {"hccl_buffer_size": "200"}
    expect("hccl_buffer_size.*int", lambda: dist.new_group(backend="hccl", pg_options=options))


def check_ranks_that_ask_for_different_things(world):
    x = torch.ones(6, device=world.device)
    odd = world.rank % 2
    everybody = f"on rank {world.rank}.*different things.*All ranks"
    expect(everybody, lambda: dist.all_reduce(x[: 4 + odd]), dist.DistBackendError)
    expect(everybody, lambda: dist.all_reduce(x, op=ReduceOp.MAX if odd else ReduceOp.SUM), dist.DistBackendError)
    expect(everybody, lambda: dist.all_reduce(x.half() if odd else x), dist.DistBackendError)
    expect(everybody, lambda: dist.broadcast(x, 0) if odd else dist.all_reduce(x), dist.DistBackendError)
    expect(everybody, lambda: dist.broadcast(x, odd), dist.DistBackendError)
    received = [2, 1] if odd else [2, 2]
    expect(
        "rank 0 sends 4 bytes to rank 1, which expects 8",
        lambda: dist.all_to_all_single(x.new_empty(sum(received)), x[:3], received, [2, 1]),
        dist.DistBackendError,
    )
    dist.all_reduce(x)  # the group goes on
    assert x.eq(world.size).all()


def check_messages_of_the_wrong_size(world):
    group = dist.new_group()
    x = torch.ones(6, device=world.device)
    peer = world.rank ^ 1
    if world.rank % 2:
        work = dist.irecv(x[:4], peer, group=group)
        expect(f"recv.*rank {peer} sends 6 Float where 4 Float", work.wait, dist.DistBackendError)
    else:
        dist.isend(x, peer, group=group)


def check_a_rank_that_does_not_come(world):
    group = dist.new_group(timeout=datetime.timedelta(seconds=1), group_desc="IMPATIENT")
    x = torch.ones(3, device=world.device)
    dist.all_reduce(x, group=group)
    dist.barrier()
    if world.rank == 0:
        named = r"all_reduce \(call 2\) on rank 0 \(rank 0 of 2 in group IMPATIENT.*failed"
        expect(named, lambda: dist.all_reduce(x, group=group), dist.DistBackendError)
    store = dist.distributed_c10d._get_default_store()
    if world.rank == 0:
        store.set("timed out", "1")
    store.wait(["timed out"])  # a rank that left would break the connection


def check_a_group_that_was_ended(world):
    group = dist.new_group()
    backend = group._get_backend(world.device)
    backend.abort()
    expect("was aborted", lambda: dist.all_reduce(torch.ones(1, device=world.device), group=group))
