"""Run by test_collectives.py in 2 processes: every check once, the outcomes as JSON in the directory argv[1].

Started as a script, so that the processes are as free of the test runner as those of torchrun.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

CHECKS: dict[str, Callable[[int], None]] = {}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)
SHAPES_OF_RANK_0_AND_1 = (
    ((3, 2), (5, 2)),
    ((0, 4), (2, 4)),
    ((4,), (0,)),
    ((2, 3), (2, 3)),
    ((0, 2), (0, 2)),
)


def check(function: Callable[[int], None]) -> Callable[[int], None]:
    CHECKS[function.__name__] = function
    return function


def expect(condition: bool, *values: object) -> None:
    if not condition:
        raise AssertionError(f"rank {dist.get_rank()}: {values}")


def content(rank: int, shape: tuple[int, ...], dtype: torch.dtype, salt: int = 0) -> torch.Tensor:
    """What `rank` contributes: small integers, exact in every dtype, that the other rank can compute too."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 + 13 * rank + 5 * salt) % 11).reshape(shape).to(dtype)


def finish(work: dist.Work | None, async_op: bool) -> None:
    """Asynchronous calls return a handle, the others None."""
    expect((work is not None) == async_op, work)
    if work is not None:
        expect(work.wait() is True)


@check
def all_gather(rank: int) -> None:
    for shapes in SHAPES_OF_RANK_0_AND_1:
        for dtype in DTYPES:
            for async_op in (False, True):
                outputs = [torch.full(shape, 99, dtype=dtype) for shape in shapes]
                mine = content(rank, shapes[rank], dtype)
                finish(dist.all_gather(outputs, mine, async_op=async_op), async_op)
                for source, output in enumerate(outputs):
                    expect(torch.equal(output, content(source, shapes[source], dtype)), shapes, dtype, output)
                expect(torch.equal(mine, content(rank, shapes[rank], dtype)), "input changed")


@check
def all_gather_into_slices_of_one_tensor(rank: int) -> None:
    """How tensor_parallel.mappings calls it."""
    sizes = [5, 2]
    whole = torch.full((7, 3), 99.0)
    dist.all_gather(list(whole.split(sizes)), content(rank, (sizes[rank], 3), torch.float32), group=dist.group.WORLD)
    expected = torch.cat([content(source, (size, 3), torch.float32) for source, size in enumerate(sizes)])
    expect(torch.equal(whole, expected), whole)


@check
def all_gather_from_and_into_strided_tensors(rank: int) -> None:
    shapes = ((4, 2), (4, 3))
    outputs = [torch.zeros(shape[::-1]).t() for shape in shapes]
    mine = content(rank, shapes[rank], torch.float32).t().contiguous().t()
    expect(not outputs[0].is_contiguous() and not mine.is_contiguous())
    dist.all_gather(outputs, mine)
    for source, output in enumerate(outputs):
        expect(torch.equal(output, content(source, shapes[source], torch.float32)), output)


@check
def reduce_scatter(rank: int) -> None:
    operations = {
        dist.ReduceOp.SUM: lambda a, b: a + b,
        dist.ReduceOp.MAX: torch.maximum,
        dist.ReduceOp.AVG: lambda a, b: (a + b) / 2,
    }
    for shapes in SHAPES_OF_RANK_0_AND_1:
        for dtype in DTYPES:
            for operation, reference in operations.items():
                if operation is dist.ReduceOp.AVG and not dtype.is_floating_point:
                    continue
                for async_op in (False, True):
                    inputs = [content(rank, shape, dtype, salt=place) for place, shape in enumerate(shapes)]
                    output = torch.full(shapes[rank], 99, dtype=dtype)
                    finish(dist.reduce_scatter(output, inputs, op=operation, async_op=async_op), async_op)
                    expected = reference(*(content(source, shapes[rank], dtype, salt=rank) for source in (0, 1)))
                    expect(torch.equal(output, expected), shapes, dtype, operation, output, expected)
                    for place, shape in enumerate(shapes):
                        expect(
                            torch.equal(inputs[place], content(rank, shape, dtype, salt=place)),
                            "input changed",
                        )


@check
def handle_of_an_uneven_collective(rank: int) -> None:
    outputs = [torch.zeros(3), torch.zeros(1)]
    work = dist.all_gather(outputs, torch.ones(3 if rank == 0 else 1), async_op=True)
    expect(isinstance(work, dist.Work))
    expect(work.wait(timedelta(seconds=60)) is True)
    outputs[0].zero_()
    expect(work.wait() is True and work.is_completed())
    expect(outputs[0].tolist() == [0.0] * 3, "the second wait() wrote again")


@check
def all_to_all(rank: int) -> None:
    # shape[source][destination]: even, uneven, nothing in one direction, differing numbers of dimensions
    for shape in (
        (((2, 3), (2, 3)), ((2, 3), (2, 3))),
        (((1, 3), (4, 3)), ((2, 3), (5, 3))),
        (((0, 3), (2, 3)), ((0, 3), (0, 3))),
        (((2,), (3, 2)), ((1, 2, 2), (5,))),
    ):
        for dtype in DTYPES:
            for async_op in (False, True):
                inputs = [content(rank, shape[rank][to], dtype, salt=to) for to in (0, 1)]
                outputs = [torch.full(shape[source][rank], 99, dtype=dtype) for source in (0, 1)]
                finish(dist.all_to_all(outputs, inputs, async_op=async_op), async_op)
                for source, output in enumerate(outputs):
                    expect(
                        torch.equal(output, content(source, shape[source][rank], dtype, salt=rank)),
                        shape,
                        output,
                    )


@check
def what_is_sent_outlives_its_tensor(rank: int) -> None:
    """As upstream's pipeline schedules do it: the tensor gives up its memory, something else takes it."""
    for round_ in range(20):
        expected = content(0, (20_000,), torch.float32, round_)
        if rank == 0:
            sent = expected.clone()
            work = dist.batch_isend_irecv([dist.P2POp(dist.isend, sent, 1)])
            sent.data = torch.empty(1)
            taken = [torch.full((20_000,), -1.0) for _ in range(4)]
        else:
            received = torch.empty(20_000)
            time.sleep(0.01)  # until then the sender holds what it sends
            work = dist.batch_isend_irecv([dist.P2POp(dist.irecv, received, 0)])
        for one in work:
            one.wait()
        if rank == 0:
            expect(len(taken) == 4)
        else:
            expect(torch.equal(received, expected), round_)


@check
def collectives_in_a_subgroup(rank: int) -> None:
    """Ranks of a group are not those of the world."""
    group = dist.new_group([1, 0], backend="nccl")  # sorted by PyTorch: same ranks, another group
    alone = [dist.new_group([r], backend="nccl") for r in (0, 1)][rank]
    outputs = [torch.zeros(1), torch.zeros(2)]
    dist.all_gather(outputs, torch.full((rank + 1,), rank + 1.0), group=group)
    expect(outputs[0].tolist() == [1.0] and outputs[1].tolist() == [2.0, 2.0], outputs)
    output = torch.zeros(3)
    dist.all_gather([output], torch.full((3,), float(rank)), group=alone)
    expect(output.tolist() == [float(rank)] * 3, output)
    dist.all_to_all([output], [torch.full((3,), 7.0)], group=alone)
    expect(output.tolist() == [7.0] * 3, output)


@check
def a_rank_outside_the_group_gets_nothing(rank: int) -> None:
    group = dist.new_group([0], backend="nccl")
    if rank == 1:
        outputs = [torch.zeros(1), torch.zeros(2)]
        expect(dist.all_gather(outputs, torch.ones(1), group=group) is None)
        expect(outputs[0].item() == 0)
        expect(dist.reduce_scatter(torch.zeros(1), outputs, group=group) is None)
        expect(dist.all_to_all(outputs, outputs, group=group) is None)
        expect(dist.barrier(group=group) is None)


@check
def groups_and_barriers(rank: int) -> None:
    expect(dist.get_backend() == "gloo", dist.get_backend())
    for options in (
        {"backend": "nccl"},
        {"backend": None},
        {"backend": "gloo"},
        {"backend": "cpu:gloo,cuda:nccl"},
        {"backend": "nccl", "pg_options": object(), "device_id": torch.device("cuda", rank)},
        {"pg_options": object()},
    ):
        group = dist.new_group([0, 1], **options)
        expect(dist.get_backend(group) == "gloo", options)
        dist.barrier(group=group, device_ids=[torch.cuda.current_device()])
        dist.barrier(group, device_ids=[rank])
        dist.barrier(group, async_op=True).wait()
    dist.barrier()
    dist.barrier(dist.group.WORLD, False, [rank])


@check
def subgroups_made_by_pytorch(rank: int) -> None:
    group, groups = dist.new_subgroups_by_enumeration([[0], [1]], backend="nccl")
    expect(len(groups) == 2 and dist.get_backend(group) == "gloo")


@check
def device_mesh(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cuda", (2,), mesh_dim_names=("dp",))
    whole = torch.arange(6.0, device="cuda")
    shard = distribute_tensor(whole, mesh, [Shard(0)])
    expect(shard.to_local().tolist() == whole.view(2, 3)[rank].tolist())
    expect(torch.equal(shard.full_tensor(), whole))


@check
def objects(rank: int) -> None:
    gathered: list = [None, None]
    dist.all_gather_object(gathered, {"rank": rank, "x": torch.full((rank + 1,), 2.0)})
    expect([item["rank"] for item in gathered] == [0, 1] and gathered[1]["x"].tolist() == [2.0, 2.0])
    payload = [{"from": rank}]
    dist.broadcast_object_list(payload, src=1, device=torch.device("cuda", torch.cuda.current_device()))
    expect(payload == [{"from": 1}], payload)


@check
def coalesced_collectives_of_the_distributed_optimizer(rank: int) -> None:
    """param_and_grad_buffer reduces and gathers buckets, in bf16 too, inside one coalescing manager."""
    for dtype in (torch.float32, torch.bfloat16):
        buckets = [content(rank, (4,), dtype, salt=i) for i in range(3)]
        with torch.distributed._coalescing_manager(dist.group.WORLD, async_ops=True) as manager:
            for bucket in buckets:
                dist.reduce_scatter_tensor(bucket.chunk(2)[rank], bucket, op=dist.ReduceOp.SUM, async_op=True)
        manager.wait()
        for i, bucket in enumerate(buckets):
            expected = (content(0, (4,), dtype, salt=i) + content(1, (4,), dtype, salt=i)).chunk(2)[rank]
            expect(torch.equal(bucket.chunk(2)[rank], expected), bucket, expected)
        with torch.distributed._coalescing_manager(dist.group.WORLD, async_ops=True) as manager:
            for bucket in buckets:
                dist.all_gather_into_tensor(bucket, bucket.chunk(2)[rank].clone(), async_op=True)
        manager.wait()
        for i, bucket in enumerate(buckets):
            expect(torch.equal(bucket, content(0, (4,), dtype, salt=i) + content(1, (4,), dtype, salt=i)), bucket)


def main(directory: Path) -> None:
    from ascend_patch.devices import choose

    torch.set_num_threads(1)
    choose("cpu").install()
    dist.init_process_group("nccl", device_id=torch.device("cuda:0"), pg_options=object())
    rank = dist.get_rank()
    outcomes = {}
    for name, function in CHECKS.items():
        try:
            function(rank)
            outcomes[name] = "ok"
        except Exception:
            outcomes[name] = traceback.format_exc()
        dist.monitored_barrier()  # a check that failed on one rank must not shift the next one
    (directory / f"{rank}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
