"""What the commands know about this machine without importing torch."""

from __future__ import annotations

from pathlib import Path

from ascend_patch.config import Config
from ascend_patch.engine.patch import Environment

DEVICES = ("npu", "cuda", "cpu")


def environment(upstream: str, device: str | None = None) -> Environment:
    """The environment a run started here would most likely have.

    Args:
        upstream: version of Megatron-LM.
        device: name of the device; by default ASCEND_PATCH_DEVICE, else what `likely_device` says.
    """
    return Environment(device or Config.from_environment().device or likely_device(), upstream)


def likely_device(devices: Path = Path("/dev")) -> str:
    """The best device by its device node: exact enough for a table, and torch stays unimported."""
    if any(devices.glob("davinci[0-9]*")):
        return "npu"
    if any(devices.glob("nvidia[0-9]*")):
        return "cuda"
    return "cpu"
