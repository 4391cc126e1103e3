"""Installing the simulated device in this process."""

import importlib

from ascend_sim import collectives, counters, dispatch
from ascend_sim.kernels import registry
from ascend_sim.settings import Settings


def install(settings: Settings) -> None:
    """Load torch_npu and replace what it would run on a device. Called once, at the end of ``import torch``."""
    importlib.import_module("torch_npu")
    dispatch.load(settings.libraries)
    dispatch.install()
    registry.register(shapes_only=settings.shapes_only)
    collectives.install(settings.libraries)
    counters.install(settings)
