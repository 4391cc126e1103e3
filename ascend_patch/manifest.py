"""The manifest of a run: everything that decides its result, in one JSON file beside its checkpoints.

Two deterministic runs that differ have manifests that differ, or there is a bug. Each start of a run writes one, so
that a resumed run shows what changed in between.
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ascend_patch.engine.report import write_text

PACKAGES = (
    "ascend-patch",
    "megatron-core",
    "torch",
    "torch-npu",
    "transformer-engine",
    "apex",
    "numpy",
    "transformers",
)

#: Variables whose names begin so are recorded: they choose devices, kernels, algorithms and the number of threads.
PREFIXES = (
    "ASCEND", "ATB_", "CLOSE_MATMUL", "CUBLAS", "CUDA_", "GLOO_", "HCCL_", "LCCL_", "MKL_", "NCCL_", "NPU_", "NVTE_",
    "OMP_", "PYTHONHASHSEED", "PYTORCH_", "TASK_QUEUE", "TORCH_", "WORLD_SIZE",
)  # fmt: skip

_sources: dict[str, Callable[[], Any]] = {}


def contribute(name: str, source: Callable[[], Any]) -> None:
    """Let ``source()`` be recorded under ``name``; called when a manifest is made."""
    _sources[name] = source


def contributed(name: str) -> Any:
    """What the source of that name says now; None if there is no such source."""
    return _sources[name]() if name in _sources else None


def collect(arguments: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The manifest of this process, ready for JSON.

    Args:
        arguments: the flags of the run, parsed; what JSON cannot hold is written as Python prints it.
    """
    return {
        "command": sys.argv,
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), **_versions()},
        "environment": {name: environ[name] for name in sorted(environ) if name.startswith(PREFIXES)},
        "hash_randomization": bool(sys.flags.hash_randomization),
        **{name: source() for name, source in _sources.items()},
        "arguments": dict(sorted(arguments.items())),
    }


def write(folder: Path, arguments: Mapping[str, Any]) -> Path:
    """Write the manifest to ``folder``/manifests/, named after the time in UTC; returns the file."""
    path = folder / "manifests" / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}.json"
    write_text(path, json.dumps(collect(arguments), indent=2, default=str, ensure_ascii=False) + "\n")
    return path


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
