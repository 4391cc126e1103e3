"""The memory figures are measured, not invented."""

import mmap

import psutil
import pytest
import torch

from ascend_patch.devices.cpu import memory

MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("cpu_device")


def _resident(size: int) -> mmap.mmap:
    """Memory that goes back to the kernel when it is closed; malloc is told to keep what it has (allocator.py)."""
    block = mmap.mmap(-1, size)
    for page in range(0, size, mmap.PAGESIZE):
        block[page] = 1
    return block


def test_allocated_follows_the_process():
    before = torch.cuda.memory_allocated()
    assert before == pytest.approx(psutil.Process().memory_info().rss, abs=16 * MIB)
    block = _resident(64 * MIB)
    during = torch.cuda.memory_allocated()
    assert during - before == pytest.approx(64 * MIB, abs=16 * MIB)
    assert torch.cuda.memory_reserved() == pytest.approx(during, abs=16 * MIB)
    block.close()
    assert torch.cuda.memory_allocated() == pytest.approx(before, abs=16 * MIB)


def test_peak_outlives_the_tensor_and_can_be_reset():
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _resident(96 * MIB).close()
    assert torch.cuda.max_memory_allocated() - before >= 80 * MIB
    if not memory.reset_peak():
        pytest.skip("this kernel does not let a process reset its high-water mark")
    torch.cuda.reset_peak_memory_stats("cuda:0")
    assert torch.cuda.max_memory_allocated() - before < 48 * MIB


def test_reset_that_the_kernel_refuses_keeps_the_peak(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    assert memory.reset_peak() is False
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() >= torch.cuda.memory_allocated() - 16 * MIB


def test_without_proc_the_peak_comes_from_getrusage(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "absent")
    block = torch.ones(32 * MIB // 4)
    assert memory.peak_resident_bytes() >= block.nbytes


def test_statistics_have_the_keys_upstream_logs():
    statistics = torch.cuda.memory_stats()
    for key in ("reserved_bytes.all.current", "allocated_bytes.all.current", "allocated_bytes.all.peak"):
        assert statistics[key] > MIB
    assert statistics["allocation.all.current"] > 10


def test_machine_figures():
    free, total = torch.cuda.mem_get_info()
    assert 0 < free < total == psutil.virtual_memory().total
    assert torch.cuda.device_memory_used() == pytest.approx(total - free, abs=256 * MIB)
    assert torch.cuda.empty_cache() is None
