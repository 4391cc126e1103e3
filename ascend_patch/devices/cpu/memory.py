"""The memory figures of ``torch.cuda`` for a device whose memory is the memory of the process.

* allocated = reserved = resident set size (RSS) of this process, in bytes. It holds the interpreter and
  libraries too, 0.5 to 1 GiB before the first parameter, which a GPU does not count.
* peak = the kernel's high-water mark of RSS. ``reset_peak_memory_stats`` resets it through
  ``/proc/self/clear_refs`` where the kernel allows that; otherwise it stays that of the whole process so far.
* total and free = memory of the machine, shared by all ranks on it.
"""

import resource
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.cuda.memory

from ascend_patch.devices.substitute import Substitutions

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_MAPS = Path("/proc/self/maps")
_RESET_PEAK_RSS = "5"  # Documentation/filesystems/proc.rst of the Linux kernel


def resident_bytes() -> int:
    """Resident set size of this process."""
    return psutil.Process().memory_info().rss


def peak_resident_bytes() -> int:
    """Highest resident set size since the start of the process, or since :func:`reset_peak`."""
    try:
        status = _STATUS.read_text()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return max(int(kibibytes) * 1024, resident_bytes())  # the kernel updates the mark lazily


def reset_peak() -> bool:
    """Set the peak to the current size. False if the kernel does not let us: the old peak then stays."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK_RSS)
    except OSError:
        return False
    return True


def _mappings() -> int:
    """Memory mappings of this process: what comes nearest to the allocator's count of live blocks."""
    try:
        return len(_MAPS.read_bytes().splitlines())
    except OSError:
        return len(psutil.Process().memory_maps(grouped=False))


def memory_stats_as_nested_dict(device: Any = None) -> dict[str, Any]:
    """``torch.cuda.memory_stats_as_nested_dict``, from which PyTorch derives all its other figures.

    Only what the host can measure is there: current and peak bytes, and the number of mappings (upstream logs
    ``allocation.all.current`` with ``--log-memory-to-tensorboard``).
    """
    size = {"all": {"current": resident_bytes(), "peak": peak_resident_bytes()}}
    return {
        "allocated_bytes": size,
        "active_bytes": size,
        "reserved_bytes": size,
        "allocation": {"all": {"current": _mappings()}},
    }


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes of the machine."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def device_memory_used(device: Any = None) -> int:
    """Bytes in use on the machine, by all processes, as the figure of a GPU is."""
    memory = psutil.virtual_memory()
    return memory.total - memory.available


def install(substitutions: Substitutions) -> None:
    """Substitute the figures; ``memory_allocated`` and its like follow from the nested dictionary."""

    def reset_peak_memory_stats(device: Any = None) -> None:
        reset_peak()

    def empty_cache() -> None:
        """Nothing is cached: the host's allocator returns memory by itself."""

    owners = (torch.cuda, torch.cuda.memory)
    for function in (
        device_memory_used,
        empty_cache,
        mem_get_info,
        memory_stats_as_nested_dict,
        reset_peak_memory_stats,
    ):
        substitutions.set_in_all(owners, function.__name__, function)
