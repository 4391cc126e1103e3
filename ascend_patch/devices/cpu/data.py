"""Data loading: no page-locked memory, and random numbers of its own.

Dropout draws from the host's generator here, so that what a loader drew from it would change the dropout masks of a
resumed run.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from ascend_patch.devices.loaders import with_own_generator
from ascend_patch.devices.substitute import Substitutions


def install(substitutions: Substitutions) -> None:
    """Substitute the constructor of ``DataLoader``."""
    substitutions.wrap(DataLoader, "__init__", lambda init: _without_pinning(with_own_generator(init)))


def _without_pinning(init: Callable) -> Callable:
    @functools.wraps(init)
    def init_on_host(self: DataLoader, *args: Any, **kwargs: Any) -> None:
        arguments = inspect.signature(init).bind(self, *args, **kwargs).arguments
        arguments["pin_memory"] = False  # page-locking memory takes an accelerator
        init(**arguments)

    return init_on_host
