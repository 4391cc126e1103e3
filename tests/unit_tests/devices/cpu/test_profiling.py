"""torch.profiler records the host, markers vanish."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.usefixtures("cpu_device")


@pytest.mark.parametrize("activities", [None, [ProfilerActivity.CPU], [ProfilerActivity.CPU, ProfilerActivity.CUDA]])
def test_profiler_records_cpu_operators(activities, capfd):
    with profile(activities=activities) as profiler:
        torch.ones(4, 4) @ torch.ones(4, 4)
    assert "aten::mm" in {event.key for event in profiler.key_averages()}
    assert "Failed to record CUDA event" not in capfd.readouterr().err


def test_markers():
    torch.cuda.nvtx.range_push("forward")
    torch.cuda.nvtx.mark("here")
    torch.cuda.nvtx.range_pop()
    torch.cuda.nvtx.range_end(torch.cuda.nvtx.range_start("step"))
    with torch.cuda.nvtx.range("step"):
        pass
