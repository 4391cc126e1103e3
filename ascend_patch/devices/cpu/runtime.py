"""``torch.cuda`` itself: is it there, how many devices, which one is current, what can it do, random numbers.

PyTorch implements most of ``torch.cuda`` in Python on a few primitives. Only the primitives are substituted
here; ``get_device_name``, ``get_device_capability``, ``manual_seed_all``, ``get_rng_state`` … work unchanged.
"""

import os
import platform
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.cuda.memory
import torch.cuda.random

from ascend_patch.devices.cpu.translation import names_cuda
from ascend_patch.devices.substitute import Substitutions
from ascend_patch.engine.errors import AscendPatchError

_OWNERS = (torch.cuda, torch.cuda.random, torch.cuda.memory, torch.cuda.graphs)


@dataclass(frozen=True)
class HostProperties:
    """``torch.cuda.get_device_properties()`` of the host.

    The compute capability is 8.0 (Ampere), the least that upstream accepts for ``--moe-grouped-gemm``. From
    9.0 on it would turn to Hopper kernels.
    """

    name: str
    total_memory: int  # bytes
    multi_processor_count: int
    major: int = 8
    minor: int = 0
    warp_size: int = 32


def processes_on_this_machine() -> int:
    """At least as many as torchrun started here; other launchers set LOCAL_RANK alone."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0)) + 1)


class _Runtime:
    """The state of the substituted ``torch.cuda``: a device for each process of the machine, all the host."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.current = 0
        self.properties = HostProperties(
            name=f"{platform.machine()} CPU",
            total_memory=psutil.virtual_memory().total,
            multi_processor_count=os.cpu_count() or 1,
        )

    def device_count(self) -> int:
        return self.count

    def current_device(self) -> int:
        return self.current

    def set_device(self, device: Any) -> None:
        index = self.index(device)
        if index >= self.count:
            raise AscendPatchError(
                f"torch.cuda.set_device({device!r}) was called, but the cpu device shows {self.count} "
                "device(s), as many as LOCAL_WORLD_SIZE or LOCAL_RANK tell. Start the processes with "
                "torchrun, or set LOCAL_WORLD_SIZE to the number of processes on this machine."
            )
        if index >= 0:
            self.current = index

    def index(self, device: Any, optional: bool = False, allow_cpu: bool = False) -> int:
        """``torch.cuda._get_device_index``. The device of a tensor, the CPU, means the current one."""
        if type(device) is int:
            return device
        if isinstance(device, torch.cuda.device):
            return device.idx
        if isinstance(device, str):
            device = torch.device(device)
        if names_cuda(device) and device.index is not None:
            return device.index
        return self.current

    def exchange_device(self, device: int) -> int:
        """Make `device` current and return the previous one; -1 means no change."""
        previous = self.current
        self.set_device(device)
        return previous


def install(substitutions: Substitutions) -> None:
    """Substitute the primitives."""
    runtime = _Runtime(processes_on_this_machine())
    replacements = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": runtime.device_count,
        "current_device": runtime.current_device,
        "set_device": runtime.set_device,
        "_get_device_index": runtime.index,
        "_exchange_device": runtime.exchange_device,
        "_maybe_exchange_device": runtime.exchange_device,
        "_get_device_properties": lambda device: runtime.properties,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: None,  # every operator has finished when it returns
        "ipc_collect": lambda: None,
        "is_current_stream_capturing": lambda: False,
        # Kernels on the host draw from the CPU generator, so that is what seeding "the GPU" has to reach.
        "default_generators": (torch.default_generator,) * runtime.count,
    }
    for name, value in replacements.items():
        substitutions.set_in_all(_OWNERS, name, value)
    if not hasattr(torch._C, "_cuda_attach_out_of_memory_observer"):  # a CPU build
        substitutions.set(torch._C, "_cuda_attach_out_of_memory_observer", lambda observer: None)
    # PyTorch's newer, device-independent door. It would believe is_available() above and go on to CUDA's C
    # functions; with False, torch.distributed.checkpoint and the like stay on the host.
    substitutions.set(torch.accelerator, "is_available", lambda: False)
