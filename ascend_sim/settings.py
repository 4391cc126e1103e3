"""Every environment variable of the simulator. ``ascend-sim run`` sets them; nothing else needs to.

``csrc/acl_runtime.cpp`` reads ``ASCEND_SIM_DEVICES``, ``ASCEND_SIM_MEMORY_MIB`` and ``ASCEND_SIM_SOC`` itself.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CACHE = "ASCEND_SIM_CACHE"
"""Where libraries and the torch_npu wheel are kept; the default is ``~/.cache/ascend_sim``."""

_LIBRARIES = "ASCEND_SIM_LIBRARIES"
_STEP = "ASCEND_SIM_STEP"
_REPORT = "ASCEND_SIM_REPORT_DIRECTORY"
_SHAPES_ONLY = "ASCEND_SIM_SHAPES_ONLY"

DEFAULT_STEP = "megatron.training.training:train_step"


@dataclass(frozen=True)
class Settings:
    """What a process on the simulated device is told.

    Args:
        libraries: directory of the built libraries.
        step: ``module:function`` whose calls are the steps of the report.
        report: directory to which each process writes its counters, or None.
        shapes_only: whether attention is not computed, see ``docs/simulator.md``.
    """

    libraries: Path
    step: str = DEFAULT_STEP
    report: Path | None = None
    shapes_only: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Settings | None":
        """What ``ascend-sim run`` has set, or None outside of it."""
        if _LIBRARIES not in environ:
            return None
        report = environ.get(_REPORT)
        return cls(
            Path(environ[_LIBRARIES]),
            environ.get(_STEP, DEFAULT_STEP),
            Path(report) if report else None,
            environ.get(_SHAPES_ONLY) == "1",
        )


def environment(
    settings: Settings, torch_npu: Path, *, devices: int, memory_mib: int, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment in which a command finds the simulated device.

    Args:
        settings: see :class:`Settings`.
        torch_npu: directory that holds the ``torch_npu`` package.
        devices: how many devices a process sees.
        memory_mib: memory of each, in MiB.
        environ: the environment to start from.
    """
    added = {
        _LIBRARIES: str(settings.libraries),
        _STEP: settings.step,
        _SHAPES_ONLY: str(int(settings.shapes_only)),
        "ASCEND_SIM_DEVICES": str(devices),
        "ASCEND_SIM_MEMORY_MIB": str(memory_mib),
        "LD_LIBRARY_PATH": _prepend(settings.libraries, environ.get("LD_LIBRARY_PATH")),
        # torch_npu would queue operators for a thread of its own, which the simulated streams have no use for.
        "TASK_QUEUE_ENABLE": "0",
    }
    if settings.report is not None:
        added[_REPORT] = str(settings.report)
    if str(torch_npu) not in sys.path:
        added["PYTHONPATH"] = _prepend(torch_npu, environ.get("PYTHONPATH"))
    return {**environ, **added}


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the simulator keeps what it builds and downloads."""
    if CACHE in environ:
        return Path(environ[CACHE])
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ascend_sim"


def _prepend(path: Path, paths: str | None) -> str:
    return f"{path}{os.pathsep}{paths}" if paths else str(path)
