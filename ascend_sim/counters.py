"""What a process asked of its device, step by step, and the file in which it leaves that.

A **launch** is an operator that writes device memory by computing: views, allocations and metadata are none, copies
between host and device are counted on their own, and a foreach operator is one. **Bytes** are what its arguments and
results occupy, an expanded dimension counted once. A **sync** is a value, a shape or a copy for which the host waits.
"""

import atexit
import contextlib
import importlib
import json
import os
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ascend_patch.engine.importer import ImportHooks
from ascend_sim.settings import Settings

OUTSIDE = "outside of steps"
"""What a process did before the first step, between steps and after the last."""

_steps: list[dict[str, Any]] = []


def take() -> dict[str, Any]:
    """What was counted since the last call, and the peak memory since the start.

    Returns:
        ``launches``, ``syncs``, ``uploads`` and ``collectives``, each a list of rows with ``scope``, ``name`` and
        ``count``; launches with ``bytes_read`` and ``bytes_written``, the last two with ``bytes``, collectives with
        ``group``. ``peak_memory_bytes`` is what torch_npu's allocator handed out at most.
    """
    taken: dict[str, Any] = {"launches": [], "syncs": [], "uploads": [], "collectives": []}
    for key, (count, first, second) in sorted(torch.ops.ascend_sim.take_counts().items()):
        kind, scope, name, *group = key.split("\t")
        row: dict[str, Any] = {"scope": scope, "name": name, "count": count}
        if kind == "launch":
            taken["launches"].append(row | {"bytes_read": first, "bytes_written": second})
        elif kind == "sync":
            taken["syncs"].append(row)
        elif kind == "upload":
            taken["uploads"].append(row | {"bytes": first})
        else:
            taken["collectives"].append(row | {"group": group[0], "bytes": first})
    npu = torch.npu  # type: ignore[attr-defined]  # torch_npu adds it
    taken["peak_memory_bytes"] = npu.max_memory_allocated() if npu.is_initialized() else 0
    return taken


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """Count under ``name`` what runs inside, and later the backward of it."""
    torch.ops.ascend_sim.enter_scope(name)
    try:
        yield
    finally:
        torch.ops.ascend_sim.leave_scope()


def install(settings: Settings) -> None:
    """Close a step at the end of every call of ``settings.step``, and write the file when the process ends."""
    if settings.report is None:
        return
    module, _, function = settings.step.partition(":")
    hooks = ImportHooks()
    hooks.after(module, lambda loaded: _count_steps(loaded, function))
    hooks.install()
    atexit.register(_write, settings.report)


def _count_steps(module: ModuleType, function: str) -> None:
    original = getattr(module, function)

    @wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        _close(OUTSIDE)
        try:
            return original(*args, **kwargs)
        finally:
            _close("step")

    setattr(module, function, step)


def _close(kind: str) -> None:
    taken = take()
    if kind != OUTSIDE or taken["launches"]:
        _steps.append({"kind": kind, **taken})


def _write(directory: Path) -> None:
    """One file a process, complete or absent; a process that launched nothing (torchrun's own) leaves none."""
    _close(OUTSIDE)
    if not _steps:
        return
    torch_npu = importlib.import_module("torch_npu")
    rank = int(os.environ.get("RANK", "0"))
    report = {
        "rank": rank,
        "torch": torch.__version__,
        "torch_npu": torch_npu.__version__,
        "simulated": True,
        "steps": _steps,
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"rank{rank}-{os.getpid()}.json"
    path.with_suffix(".part").write_text(json.dumps(report))
    path.with_suffix(".part").replace(path)
