"""What the host cannot do raises, and says what to do."""

import pytest
import torch

from ascend_patch.engine.errors import AscendPatchError

pytestmark = pytest.mark.usefixtures("cpu_device")


@pytest.mark.parametrize(
    "name, arguments, advice",
    [
        ("CUDAGraph", (), "--cuda-graph-impl none"),
        ("graph", (None,), "--cuda-graph-impl none"),
        ("graph_pool_handle", (), "--cuda-graph-impl none"),
        ("make_graphed_callables", (abs, ()), "--cuda-graph-impl none"),
        ("MemPool", (), "memory pools"),
        ("use_mem_pool", (None,), "memory pools"),
        ("ExternalStream", (0,), "Streams of another library"),
        ("memory_snapshot", (), "--record-memory-history"),
        ("memory._record_memory_history", (), "--record-memory-history"),
        ("memory._snapshot", (), "--record-memory-history"),
        ("memory._dump_snapshot", ("f",), "--record-memory-history"),
        ("cudart", (), "--use-pytorch-profiler"),
        ("temperature", (), "--log-straggler"),
        ("power_draw", (), "--log-straggler"),
        ("utilization", (), "--log-straggler"),
        ("clock_rate", (), "--log-straggler"),
    ],
)
def test_raises_with_advice(name, arguments, advice):
    target = torch.cuda
    for part in name.split("."):
        target = getattr(target, part)
    with pytest.raises(AscendPatchError, match="device of this process is the cpu") as error:
        target(*arguments)
    assert name.rpartition(".")[2] in str(error.value)
    assert advice in str(error.value)


def test_classes_stay_classes():
    """Upstream names them in annotations and isinstance checks."""
    assert not isinstance(torch.zeros(1), (torch.cuda.CUDAGraph, torch.cuda.MemPool, torch.cuda.ExternalStream))
    assert torch.cuda.graphs.CUDAGraph is torch.cuda.CUDAGraph


def test_asking_for_a_method_raises_too():
    with pytest.raises(AscendPatchError, match=r"torch\.cuda\.CUDAGraph\.register_generator_state was used"):
        hasattr(torch.cuda.CUDAGraph, "register_generator_state")


def test_the_cuda_profiler_raises():
    with pytest.raises(AscendPatchError, match="--use-pytorch-profiler"):
        torch.cuda.profiler.start()
