"""Checks of every collective, for collectives_worker.py. Expected values come from all ranks' inputs, in float64."""

import datetime
import functools

import torch
import torch.distributed as dist
from torch.distributed import ReduceOp

from ascend_sim import counters, timeline

SHAPES = [(7,), (3, 5), (), (4, 0, 2), (257, 33)]
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64]
MOVED = [*FLOATS, *INTEGERS, torch.uint8, torch.bool, torch.float64, torch.float8_e4m3fn, torch.uint16]
REDUCE = {
    ReduceOp.SUM: lambda stack: stack.sum(0),
    ReduceOp.AVG: lambda stack: stack.mean(0),
    ReduceOp.MIN: lambda stack: stack.amin(0),
    ReduceOp.MAX: lambda stack: stack.amax(0),
    ReduceOp.PRODUCT: lambda stack: stack.prod(0),
}


def dtypes(world, group, every):
    """All of `every` in the group of 2 processes; the first and last elsewhere, where it is the ranks that matter."""
    return every if world.size == 2 and group is dist.group.WORLD else [every[0], every[-1]]


def numbers(world, rank, shape, dtype=torch.float32, salt=0):
    """What `rank` puts in, on the host: nonzero, small enough for an int8 to hold any sum or product."""
    generator = torch.Generator().manual_seed(world.seed * 1009 + 31 * rank + salt)
    if dtype.is_floating_point and dtype.itemsize > 1:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(1, 3, shape, generator=generator).to(dtype)


def on_device(world, *tensors):
    return [tensor.to(world.device) for tensor in tensors]


def filled(world, shape, dtype=torch.float32):
    """An output, full of something that no result is."""
    return torch.full(shape, 77, dtype=torch.float32).to(dtype).to(world.device)


def same(actual, expected):
    """Equal, bit for bit, in sizes and dtype."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, (actual.shape, expected.shape)
    host = actual.cpu().contiguous()
    raw = [tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (host, expected)]
    assert torch.equal(*raw), f"found {host}, expected {expected}"


def close(actual, expected, terms):
    """Within what `terms` rounded operations of this dtype may lose; `expected` is in float64."""
    dtype = actual.dtype
    if not dtype.is_floating_point:
        expected = expected.to(torch.int64).to(dtype)
        return same(actual, expected)
    loss = terms * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=loss, atol=loss * terms)


@functools.cache
def groups(world):
    """The groups this rank is in: everybody, every second rank, one half. (ranks, process group)"""
    everybody = list(range(world.size))
    half = world.size // 2
    partitions = [[everybody[0::2], everybody[1::2]], [everybody[:half], everybody[half:]]]
    made = [(everybody, dist.group.WORLD)]
    for ranks in (ranks for partition in partitions for ranks in partition):
        group = dist.new_group(ranks, group_desc=f"RANKS_{'_'.join(map(str, ranks))}")
        if world.rank in ranks:
            made.append((ranks, group))
    return made


def uneven(ranks, offset=0):
    """Rows for each rank of a group: all different, one of them none."""
    return [(3 * i + 2 * offset) % (2 * len(ranks) + 1) if i != offset % len(ranks) else 0 for i in range(len(ranks))]


# ---- reductions


def check_all_reduce(world):
    for ranks, group in groups(world):
        for dtype in dtypes(world, group, [torch.uint8, *INTEGERS, *FLOATS]):
            for op, expectation in REDUCE.items():
                if op == ReduceOp.AVG and not dtype.is_floating_point:
                    continue
                if op == ReduceOp.PRODUCT and dtype in (torch.int16, torch.bfloat16):
                    continue
                for shape in SHAPES if op in (ReduceOp.SUM, ReduceOp.AVG) else SHAPES[:1]:
                    inputs = [numbers(world, rank, shape, dtype) for rank in ranks]
                    (tensor,) = on_device(world, inputs[ranks.index(world.rank)])
                    dist.all_reduce(tensor, op=op, group=group)
                    close(tensor, expectation(torch.stack(inputs).double()), len(ranks))


def check_all_reduce_of_bool_is_or(world):
    inputs = [torch.tensor([rank == 0, rank % 2 == 1, True, False]) for rank in range(world.size)]
    (tensor,) = on_device(world, inputs[world.rank])
    dist.all_reduce(tensor)
    same(tensor, torch.stack(inputs).any(0))


def check_all_reduce_is_deterministic_and_equals_that_of_gloo(world):
    group = dist.new_group(backend="cpu:gloo,npu:hccl")
    for dtype in FLOATS:
        mine = numbers(world, world.rank, (1031,), dtype)
        dist.all_reduce(host := mine.clone(), group=group)
        for _ in range(3):
            (tensor,) = on_device(world, mine)
            dist.all_reduce(tensor, group=group)
            same(tensor, host)


def check_reduce_changes_the_root_alone(world):
    for ranks, group in groups(world):
        for root in (ranks[0], ranks[-1]):
            for op in (ReduceOp.SUM, ReduceOp.AVG, ReduceOp.MAX):
                inputs = [numbers(world, rank, (5, 3), torch.bfloat16) for rank in ranks]
                mine = inputs[ranks.index(world.rank)]
                (tensor,) = on_device(world, mine)
                dist.reduce(tensor, root, op=op, group=group)
                if world.rank == root:
                    close(tensor, REDUCE[op](torch.stack(inputs).double()), len(ranks))
                else:
                    same(tensor, mine)


def check_reduce_scatter_tensor(world):
    for ranks, group in groups(world):
        n, me = len(ranks), ranks.index(world.rank)
        for dtype in dtypes(world, group, [*INTEGERS, *FLOATS]):
            for op in (ReduceOp.SUM, ReduceOp.AVG) if dtype.is_floating_point else (ReduceOp.SUM,):
                for rows in (2, 0):
                    inputs = [numbers(world, rank, (rows * n, 3), dtype) for rank in ranks]
                    expected = REDUCE[op](torch.stack(inputs).double()).split(rows)[me] if rows else torch.empty(0, 3)
                    (tensor,) = on_device(world, inputs[me])
                    output = filled(world, (rows, 3), dtype)
                    dist.reduce_scatter_tensor(output, tensor, op=op, group=group)
                    close(output, expected.double(), n)
                    same(tensor, inputs[me])
        # the distributed optimizer reduces into its own part of the buffer
        inputs = [numbers(world, rank, (4 * n,)) for rank in ranks]
        (tensor,) = on_device(world, inputs[me])
        own = tensor.split(4)[me]
        dist.reduce_scatter_tensor(own, tensor, group=group)
        close(own, torch.stack(inputs).double().sum(0).split(4)[me], n)


def check_reduce_scatter_of_lists(world):
    for ranks, group in groups(world):
        n, me = len(ranks), ranks.index(world.rank)
        for counts in ([3] * n, uneven(ranks), uneven(ranks, 1)):
            for op in (ReduceOp.SUM, ReduceOp.AVG, ReduceOp.MIN):
                inputs = [[numbers(world, rank, (c, 2), salt=i) for i, c in enumerate(counts)] for rank in ranks]
                expected = REDUCE[op](torch.stack([parts[me] for parts in inputs]).double())
                output = filled(world, (counts[me], 2))
                dist.reduce_scatter(output, on_device(world, *inputs[me]), op=op, group=group)
                close(output, expected, n)


# ---- movements


def check_broadcast(world):
    for ranks, group in groups(world):
        for root in (ranks[0], ranks[-1]):
            for dtype in dtypes(world, group, MOVED):
                for shape in SHAPES:
                    (tensor,) = on_device(world, numbers(world, world.rank, shape, dtype))
                    dist.broadcast(tensor, root, group=group)
                    same(tensor, numbers(world, root, shape, dtype))


def check_all_gather(world):
    for ranks, group in groups(world):
        for dtype in dtypes(world, group, MOVED):
            for shape in SHAPES:
                (tensor,) = on_device(world, numbers(world, world.rank, shape, dtype))
                outputs = [filled(world, shape, dtype) for _ in ranks]
                dist.all_gather(outputs, tensor, group=group)
                for rank, output in zip(ranks, outputs, strict=True):
                    same(output, numbers(world, rank, shape, dtype))


def check_all_gather_of_uneven_parts(world):
    for ranks, group in groups(world):
        for offset in range(3):
            rows = uneven(ranks, offset)
            inputs = [numbers(world, rank, (r, 3), torch.bfloat16) for rank, r in zip(ranks, rows, strict=True)]
            outputs = [filled(world, (r, 3), torch.bfloat16) for r in rows]
            (tensor,) = on_device(world, inputs[ranks.index(world.rank)])
            dist.all_gather(outputs, tensor, group=group)
            for output, expected in zip(outputs, inputs, strict=True):
                same(output, expected)


def check_all_gather_into_permuted_tensors(world):
    for rows in ([4] * world.size, [2 + rank for rank in range(world.size)]):
        outputs = [filled(world, (3, r)).t() for r in rows]
        (tensor,) = on_device(world, numbers(world, world.rank, (rows[world.rank], 3)))
        dist.all_gather(outputs, tensor)
        for rank, output in enumerate(outputs):
            same(output, numbers(world, rank, (rows[rank], 3)))


def check_all_gather_into_tensor(world):
    for ranks, group in groups(world):
        for dtype in dtypes(world, group, MOVED):
            for rows in (3, 0):
                inputs = [numbers(world, rank, (rows, 2), dtype) for rank in ranks]
                (tensor,) = on_device(world, inputs[ranks.index(world.rank)])
                output = filled(world, (rows * len(ranks), 2), dtype)
                dist.all_gather_into_tensor(output, tensor, group=group)
                same(output, torch.cat([part.view(torch.uint8) for part in inputs]).view(dtype))
        # parameters are gathered from each rank's own part of the buffer
        buffer = filled(world, (5 * len(ranks),))
        own = buffer.split(5)[ranks.index(world.rank)]
        own.copy_(numbers(world, world.rank, (5,)))
        dist.all_gather_into_tensor(buffer, own, group=group)
        same(buffer, torch.cat([numbers(world, rank, (5,)) for rank in ranks]))


def check_all_to_all_single(world):
    for ranks, group in groups(world):
        n, me = len(ranks), ranks.index(world.rank)
        for dtype in dtypes(world, group, MOVED):
            for columns in ((), (3,)):
                # rows from rank i to rank j; `table[0]` is even, and is asked for without split sizes
                for table in ([[2] * n] * n, [uneven(ranks, i) for i in range(n)], [[0] * n] * n):
                    parts = [
                        [
                            numbers(world, ranks[i], (table[i][j], *columns), dtype, j).view(torch.uint8)
                            for j in range(n)
                        ]
                        for i in range(n)
                    ]
                    sent, received = table[me], [table[i][me] for i in range(n)]
                    (tensor,) = on_device(world, torch.cat(parts[me]).view(dtype))
                    output = filled(world, (sum(received), *columns), dtype)
                    splits = () if table == [[2] * n] * n else (received, sent)
                    dist.all_to_all_single(output, tensor, *splits, group=group)
                    same(output, torch.cat([parts[i][me] for i in range(n)]).view(dtype))


def check_all_to_all_of_lists(world):
    for ranks, group in groups(world):
        n, me = len(ranks), ranks.index(world.rank)
        inputs = [[numbers(world, ranks[i], (uneven(ranks, i)[j], 2), salt=j) for j in range(n)] for i in range(n)]
        outputs = [filled(world, inputs[i][me].shape) for i in range(n)]
        dist.all_to_all(outputs, on_device(world, *inputs[me]), group=group)
        for i in range(n):
            same(outputs[i], inputs[i][me])


def check_gather_and_scatter(world):
    for compatible in (False, True):  # torch_npu gathers with all_gather, or asks the backend to
        torch.npu.use_compatible_impl(compatible)
        for ranks, group in groups(world):
            root, me = ranks[-1], ranks.index(world.rank)
            inputs = [numbers(world, rank, (4, 2), torch.bfloat16) for rank in ranks]
            (tensor,) = on_device(world, inputs[me])
            outputs = [torch.empty_like(tensor) for _ in ranks] if world.rank == root else None
            if not compatible or root == len(ranks) - 1:  # there torch_npu takes the global rank for the group's
                dist.gather(tensor, outputs, dst=root, group=group)
                for output, expected in zip(outputs or [], inputs, strict=False):
                    same(output, expected)
            output = torch.empty_like(tensor)
            parts = [numbers(world, root, (4, 2), torch.bfloat16, salt=i) for i in range(len(ranks))]
            dist.scatter(output, on_device(world, *parts) if world.rank == root else None, src=root, group=group)
            same(output, parts[me])
    torch.npu.use_compatible_impl(False)


def check_tensors_of_torch_npus_own_uneven_functions(world):
    from torch_npu.distributed.distributed_c10d import _all_gather_into_tensor_uneven, _reduce_scatter_tensor_uneven

    rows = uneven(range(world.size))
    inputs = [numbers(world, rank, (sum(rows), 3)) for rank in range(world.size)]
    output = filled(world, (rows[world.rank], 3))
    _reduce_scatter_tensor_uneven(output, inputs[world.rank].to(world.device), rows)
    close(output, torch.stack(inputs).double().sum(0).split(rows)[world.rank], world.size)
    gathered = filled(world, (sum(rows), 3))
    parts = [numbers(world, rank, (r, 3)) for rank, r in enumerate(rows)]
    _all_gather_into_tensor_uneven(gathered, parts[world.rank].to(world.device), rows)
    same(gathered, torch.cat(parts))


# ---- messages


def check_send_and_recv(world):
    """Around the ring, even ranks first; tags are not looked at, as in HCCL."""
    after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    for dtype in dtypes(world, dist.group.WORLD, MOVED):
        for shape in SHAPES:
            (tensor,) = on_device(world, numbers(world, world.rank, shape, dtype))
            received = filled(world, shape, dtype)
            if world.rank % 2 == 0:
                dist.send(tensor, after, tag=3)
                dist.recv(received, before, tag=4)
            else:
                dist.recv(received, before, tag=5)
                dist.send(tensor, after, tag=6)
            same(received, numbers(world, before, shape, dtype))


def check_isend_and_irecv_in_both_directions(world):
    peer = world.rank ^ 1
    sizes = [5, 0, 100_000, 1]
    sent = on_device(world, *(numbers(world, world.rank, (n,), salt=n) for n in sizes))
    received = [filled(world, (n,)) for n in sizes]
    works = [dist.isend(tensor, peer) for tensor in sent] + [dist.irecv(tensor, peer) for tensor in received]
    for work in reversed(works):
        work.wait()
    for n, tensor in zip(sizes, received, strict=True):
        same(tensor, numbers(world, peer, (n,), salt=n))


def check_batch_isend_irecv(world):
    """Several messages to every other rank and from it, in one batch; then with a neighbour alone in a group."""
    for ranks, group in groups(world):
        others = [rank for rank in ranks if rank != world.rank]
        if not others:
            continue
        operations, expected = [], []
        for peer in others:
            for salt, n in enumerate((3, 0, 40)):
                operations.append(
                    dist.P2POp(dist.isend, *on_device(world, numbers(world, world.rank, (n,), salt=salt)), peer, group)
                )
                received = filled(world, (n,))
                operations.append(dist.P2POp(dist.irecv, received, peer, group))
                expected.append((received, numbers(world, peer, (n,), salt=salt)))
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        for received, values in expected:
            same(received, values)


# ---- handles


def check_coalesced_collectives(world):
    n, me = world.size, world.rank
    inputs = [[numbers(world, rank, (k * n, 2), salt=k) for k in (1, 3)] for rank in range(n)]
    totals = [torch.stack([parts[i] for parts in inputs]).double().sum(0) for i in range(2)]
    for asynchronous in (False, True):
        tensors = on_device(world, *inputs[me])
        scattered = [filled(world, (k, 2)) for k in (1, 3)]
        with dist._coalescing_manager(async_ops=asynchronous) as manager:
            for output, tensor in zip(scattered, tensors, strict=True):
                dist.reduce_scatter_tensor(output, tensor)
        if asynchronous:
            manager.wait()
        gathered = [filled(world, (k * n, 2)) for k in (1, 3)]
        with dist._coalescing_manager(async_ops=asynchronous) as manager:
            for output, tensor in zip(gathered, scattered, strict=True):
                dist.all_gather_into_tensor(output, tensor)
        if asynchronous:
            manager.wait()
        with dist._coalescing_manager(async_ops=asynchronous) as manager:
            for tensor in tensors:
                dist.all_reduce(tensor)
        if asynchronous:
            manager.wait()
        for total, whole, reduced in zip(totals, gathered, tensors, strict=True):
            close(whole, total, n)
            close(reduced, total, n)


def check_coalesced_messages(world):
    after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    (tensor,) = on_device(world, numbers(world, world.rank, (6,)))
    received = filled(world, (6,))
    with dist._coalescing_manager(device=world.device, async_ops=True) as manager:
        dist.isend(tensor, after)
        dist.irecv(received, before)
    manager.wait()
    same(received, numbers(world, before, (6,)))


def check_asynchronous_calls_in_any_order(world):
    tensors = on_device(world, *(numbers(world, world.rank, (50,), salt=i) for i in range(6)))
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    while not works[5].is_completed():
        pass
    (future,) = works[0].get_future().wait()
    assert future is tensors[0] or torch.equal(future, tensors[0])
    for work in reversed(works):
        assert work.wait() and work.is_completed()
    for i, tensor in enumerate(tensors):
        inputs = torch.stack([numbers(world, rank, (50,), salt=i) for rank in range(world.size)])
        close(tensor, inputs.double().sum(0), world.size)


def check_barrier(world):
    """Nobody leaves before the last has come."""
    store = dist.distributed_c10d._get_default_store()
    for turn, (ranks, group) in enumerate(groups(world)):
        arrived = store.add(f"arrived{turn}-{ranks[0]}", 1)
        dist.barrier(group=group, device_ids=[world.rank])
        assert arrived <= len(ranks) == store.add(f"arrived{turn}-{ranks[0]}", 0)


def check_objects(world):
    for ranks, group in groups(world):
        gathered = [None] * len(ranks)
        dist.all_gather_object(gathered, {"rank": world.rank, "text": "x" * world.rank}, group=group)
        assert gathered == [{"rank": rank, "text": "x" * rank} for rank in ranks]
        objects = [world.rank, str(world.rank)]
        dist.broadcast_object_list(objects, src=ranks[-1], group=group)
        assert objects == [ranks[-1], str(ranks[-1])]
        received = [None]
        dist.scatter_object_list(received, [f"for {rank}" for rank in ranks], src=ranks[0], group=group)
        assert received == [f"for {world.rank}"]
    collected = [None] * world.size if world.rank == 0 else None
    dist.gather_object(world.rank**2, collected, dst=0)
    assert collected is None or collected == [rank**2 for rank in range(world.size)]


def check_every_collective_is_counted_once(world):
    x = torch.ones(world.size, 3, device=world.device)
    counters.take()
    dist.all_reduce(x)
    dist.all_gather_into_tensor(filled(world, (world.size**2, 3)), x)
    dist.all_to_all_single(torch.empty_like(x), x)
    dist.broadcast(x, 0)
    with dist._coalescing_manager():
        dist.all_reduce(x)
        dist.all_reduce(x[0])
    ranks, group = groups(world)[1]
    dist.barrier(group)
    rows = {(row["name"], row["group"]): (row["count"], row["bytes"]) for row in counters.take()["collectives"]}
    size = x.nbytes
    assert rows == {
        ("all_reduce", "default_pg"): (3, 2 * size + 12),
        ("all_gather_into_tensor", "default_pg"): (1, size),
        ("all_to_all_single", "default_pg"): (1, size),
        ("broadcast", "default_pg"): (1, size if world.rank == 0 else 0),
        ("barrier", f"RANKS_{'_'.join(map(str, ranks))}"): (1, 4),
    }


def check_what_may_run_beside_a_collective(world):
    x, y = torch.ones(3, device=world.device), torch.ones(4, device=world.device)
    dist.all_reduce(x)  # nothing of the first call is left to be recorded
    other = torch.npu.Stream()

    def blocking():
        dist.all_reduce(x)
        y.mul_(2)

    def asynchronous():
        work = dist.all_reduce(x, async_op=True)
        y.mul_(2)
        y.add_(1)
        work.wait()
        y.sub_(1)

    def coalesced():
        with dist._coalescing_manager(async_ops=True) as works:
            dist.all_reduce(x)
            dist.all_reduce(y)
        x.new_zeros(2)
        works.wait()
        y.sub_(1)

    def on_another_stream():
        with torch.npu.stream(other):
            dist.all_reduce(x)
        y.mul_(2)
        torch.npu.current_stream().wait_stream(other)
        y.sub_(1)

    def until_the_host_waits():
        work = dist.all_reduce(x, async_op=True)
        y.mul_(2)
        torch.npu.synchronize()
        y.sub_(1)
        work.wait()

    def within_an_operator():
        import torch_npu

        rows, weight = (torch.ones(shape, device=world.device).bfloat16() for shape in ((world.size, 256), (256, 3)))
        name = dist.group.WORLD._get_backend(world.device).get_hccl_comm_name(world.rank)
        torch_npu.npu_mm_reduce_scatter_base(rows, weight, name, world.size)

    for function, expected in (
        (blocking, [[]]),
        (asynchronous, [["aten::mul_.Tensor", "aten::add_.Tensor"]]),
        (coalesced, [["aten::zero_"]] * 2),
        (on_another_stream, [["aten::mul_.Tensor"]]),
        (until_the_host_waits, [["aten::mul_.Tensor"]]),
        (within_an_operator, [["npu::npu_mm_reduce_scatter_base"]]),
    ):
        counters.take()
        with timeline.record() as events:
            function()
        found = timeline.spans(events)
        assert [[events[position].name for position in span.beside] for span in found] == expected, (function, events)
        assert {span.event.group for span in found} == {"default_pg"}
        taken = counters.take()
        assert sum(span.event.bytes for span in found) == sum(row["bytes"] for row in taken["collectives"])
        launches = [event for event in events if event.kind == "launch"]
        moved = sum(row["bytes_read"] + row["bytes_written"] for row in taken["launches"])
        assert sum(event.bytes for event in launches) == moved
    with timeline.record() as events:
        pass
    blocking()
    assert events == [], "nothing is recorded outside of the block"


def check_options_and_names(world):
    from torch_npu._C._distributed_c10d import ProcessGroupHCCL

    options = ProcessGroupHCCL.Options()
    options.hccl_config = {"hccl_buffer_size": 64, "group_name": "checked"}
    group = dist.new_group(backend="hccl", pg_options=options)
    backend = group._get_backend(world.device)
    assert backend.options.hccl_config["hccl_buffer_size"] == 64
    assert dist.get_backend(group) == "hccl" == backend.name()
    names = [None] * world.size
    dist.all_gather_object(names, backend.get_hccl_comm_name(world.rank))
    assert len(set(names)) == 1
    backend.set_timeout(datetime.timedelta(seconds=50))
    assert backend.options._timeout == datetime.timedelta(seconds=50)
    x = torch.ones(1, device=world.device)
    dist.all_reduce(x, group=group)
    assert x.item() == world.size
    dist.destroy_process_group(group)
