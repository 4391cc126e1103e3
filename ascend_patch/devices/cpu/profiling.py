"""Profiling: ``torch.profiler`` records CPU operators, NVTX markers are dropped.

The CUDA profiler itself (``torch.cuda.profiler``, ``torch.cuda.cudart``) is in ``unsupported.py``.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.profiler

from ascend_patch.devices.substitute import Substitutions


def install(substitutions: Substitutions) -> None:
    """Substitute the profiler's choice of device, and the markers."""
    # A CUDA build of torch.profiler records CUDA by default, and then asks the driver at every event.
    substitutions.wrap(torch.autograd.profiler.profile, "__init__", _without_cuda)
    # NVTX markers are for Nsight, which cannot attach here. A CPU build of PyTorch would raise.
    for name in ("range_push", "range_pop", "mark", "range_start", "range_end"):
        substitutions.set(torch.cuda.nvtx, name, _no_marker)


def _without_cuda(init: Callable) -> Callable:
    @functools.wraps(init)
    def init_on_host(self: Any, enabled: bool = True, **kwargs: Any) -> None:
        kwargs.pop("use_cuda", None)
        if kwargs.get("use_device") == "cuda":
            kwargs["use_device"] = None
        init(self, enabled, **kwargs)

    return init_on_host


def _no_marker(*args: Any) -> int:
    """Return what the NVTX functions return, a depth or a handle."""
    return 0
