"""What ``torch.cuda`` means in this process: an Ascend NPU, a CUDA GPU or the host CPU.

:func:`choose` picks the device, ``device.install()`` makes it effective and ``device.revert()`` undoes that.
Importing this package, or choosing, changes nothing. Nothing here knows Megatron; ``ascend_patch.activation``
installs the device right before ``megatron.core`` executes, so a process that never imports Megatron keeps
PyTorch as it came.
"""

import logging

from ascend_patch.devices.base import Device
from ascend_patch.devices.cpu import CpuDevice
from ascend_patch.devices.cuda import CudaDevice
from ascend_patch.devices.npu import NpuDevice
from ascend_patch.engine.errors import AscendPatchError

__all__ = ["Device", "choose"]

_logger = logging.getLogger(__name__)

# Best first: the order in which choose() tries them when nobody asked for one by name.
_DEVICES: dict[str, type[Device]] = {d.name: d for d in (NpuDevice, CudaDevice, CpuDevice)}


def choose(requested: str | None = None) -> Device:
    """Return the device this process is to compute on. It is not installed yet.

    Args:
        requested: ``"npu"``, ``"cuda"`` or ``"cpu"``; None or ``""`` takes the best one that works here.

    Raises:
        AscendPatchError: the name is unknown, or the device asked for does not work on this machine. A device
            asked for by name is never exchanged for another.
    """
    if requested:
        return _named(requested)
    for device in _DEVICES.values():
        problem = device.unavailable()
        if problem is None:
            return device()
        if problem.broken:
            _logger.warning("The %s is passed over: %s. %s", device.name, problem.reason, problem.next_step)
    raise AscendPatchError("No device works here, not even the cpu. This is a defect of ascend_patch.")


def _named(name: str) -> Device:
    if name not in _DEVICES:
        raise AscendPatchError(
            f"Device {name!r} is unknown. Allowed are {', '.join(_DEVICES)}. Set ASCEND_PATCH_DEVICE to one "
            "of them, or leave it empty to take the best there is."
        )
    problem = _DEVICES[name].unavailable()
    if problem is not None:
        raise AscendPatchError(
            f"Device {name!r} was requested, but {problem.reason}. {problem.next_step} Or leave "
            "ASCEND_PATCH_DEVICE empty to take the best device there is."
        )
    return _DEVICES[name]()
