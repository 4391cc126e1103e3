"""Data loading: no page-locked memory, and random numbers of its own.

With a GPU, a loader draws the seed of its workers from the CPU generator, and dropout draws from that of the GPU.
Here both are one: a resumed run, which restores the generator and then makes its loaders, would go on with other
dropout masks than a run that was not interrupted. So a loader that has no generator gets one.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from ascend_patch.devices.substitute import Substitutions


def install(substitutions: Substitutions) -> None:
    """Substitute the constructor of ``DataLoader``."""
    substitutions.wrap(DataLoader, "__init__", _data_loader_init)


def _data_loader_init(init: Callable) -> Callable:
    @functools.wraps(init)
    def init_on_host(self: DataLoader, *args: Any, **kwargs: Any) -> None:
        arguments = inspect.signature(init).bind(self, *args, **kwargs).arguments
        arguments["pin_memory"] = False  # page-locking memory takes an accelerator
        if arguments.get("generator") is None:
            arguments["generator"] = torch.Generator().manual_seed(torch.initial_seed())
        init(**arguments)

    return init_on_host
