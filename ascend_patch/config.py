"""Every environment variable of the project, as one frozen dataclass.

Nothing else in the package reads ``os.environ`` for settings of its own; what a variable means is written
here once and shown by ``ascend-patch doctor``.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from ascend_patch.engine.errors import AscendPatchError

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"", "0", "false", "no", "off"})


def _variable(name: str, meaning: str, **kwargs):
    return field(metadata={"variable": name, "meaning": meaning}, **kwargs)


@dataclass(frozen=True)
class Trace:
    """What ``ASCEND_PATCH_TRACE`` says: the steps that are recorded, the first is 1, and where."""

    folder: Path
    steps: frozenset[int] = frozenset({1})


@dataclass(frozen=True)
class Config:
    """Settings of one process, read once by :meth:`from_environment`."""

    enabled: bool = _variable("ASCEND_PATCH", "1: activate at the end of `import torch`", default=False)
    device: str = _variable("ASCEND_PATCH_DEVICE", "npu, cuda or cpu; empty: the best there is", default="")
    disabled: frozenset[str] = _variable(
        "ASCEND_PATCH_DISABLE", "ids of patches to leave out, separated by commas", default=frozenset()
    )
    allow_drift: bool = _variable(
        "ASCEND_PATCH_ALLOW_DRIFT", "1: patch although upstream changed under a patch", default=False
    )
    ops: Mapping[str, str] = _variable(
        "ASCEND_PATCH_OPS", "variants to force, e.g. grouped_gemm=reference,attention=torch", default_factory=dict
    )
    report: Path | None = _variable(
        "ASCEND_PATCH_REPORT",
        "file for the JSON report of what was patched and which operators ran, written by rank 0",
        default=None,
    )
    deterministic: bool = _variable(
        "ASCEND_PATCH_DETERMINISTIC", "1: as --deterministic-mode, for a script as it is", default=False
    )
    dataset_type: str = _variable(
        "MP_DATASET_TYPE",
        "raw: instruction data is read from json and the like; empty or idxmap: from prepared files",
        default="",
    )
    trace: Trace | None = _variable(
        "ASCEND_PATCH_TRACE",
        "folder[@steps], such as trace@1,2,10-12: digests of what each module computes in these steps (1)",
        default=None,
    )
    quiet: bool = _variable("ASCEND_PATCH_QUIET", "1: no line on standard error at start", default=False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "Config":
        """Read the variables.

        Raises:
            AscendPatchError: an ``ASCEND_PATCH…`` variable that does not exist (a typing error would
                otherwise be silent), or a value that cannot be read.
        """
        known = {f.metadata["variable"] for f in fields(cls)}
        unknown = sorted(name for name in environ if name.startswith("ASCEND_PATCH") and name not in known)
        if unknown:
            raise AscendPatchError(
                f"{', '.join(unknown)} is set, but ascend_patch knows no such variable. "
                f"It reads {', '.join(sorted(known))}. Correct or unset it."
            )
        report = environ.get("ASCEND_PATCH_REPORT", "")
        return cls(
            enabled=_flag(environ, "ASCEND_PATCH"),
            device=environ.get("ASCEND_PATCH_DEVICE", "").strip().lower(),
            disabled=frozenset(_items(environ.get("ASCEND_PATCH_DISABLE", ""))),
            allow_drift=_flag(environ, "ASCEND_PATCH_ALLOW_DRIFT"),
            ops=_pairs(environ, "ASCEND_PATCH_OPS"),
            report=Path(report) if report else None,
            deterministic=_flag(environ, "ASCEND_PATCH_DETERMINISTIC"),
            dataset_type=_choice(environ, "MP_DATASET_TYPE", ("raw", "idxmap")),
            trace=_trace(environ, "ASCEND_PATCH_TRACE"),
            quiet=_flag(environ, "ASCEND_PATCH_QUIET"),
        )


def _flag(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "").strip().lower()
    if value in TRUE:
        return True
    if value in FALSE:
        return False
    raise AscendPatchError(f"{name}={environ[name]!r} is neither on nor off. Use 1 or 0.")


def _choice(environ: Mapping[str, str], name: str, values: tuple[str, ...]) -> str:
    value = environ.get(name, "").strip().lower()
    if value in ("", *values):
        return value
    raise AscendPatchError(f"{name}={environ[name]!r} is none of {', '.join(values)}. Use one of them, or unset it.")


def _items(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


def _pairs(environ: Mapping[str, str], name: str) -> dict[str, str]:
    pairs = {}
    for item in _items(environ.get(name, "")):
        operator, equals, variant = item.partition("=")
        if not (equals and operator.strip() and variant.strip()):
            raise AscendPatchError(
                f"{name} contains {item!r}. Write operator=variant, separated by commas, "
                "for example grouped_gemm=reference."
            )
        pairs[operator.strip()] = variant.strip()
    return pairs


def _trace(environ: Mapping[str, str], name: str) -> Trace | None:
    value = environ.get(name, "").strip()
    folder, at, steps = value.rpartition("@")
    if not value or not at:
        return Trace(Path(value)) if value else None
    numbers: set[int] = set()
    for item in _items(steps):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last:
            numbers.clear()
            break
        numbers.update(range(first, last + 1))
    if not (folder and numbers):
        raise AscendPatchError(
            f"{name}={value!r} is not a folder, or a folder, @ and the steps to record, from 1 on: "
            "trace, or trace@1,2,10-12."
        )
    return Trace(Path(folder), frozenset(numbers))


def variable_of_others(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """A variable of the shell, PyTorch or CANN, "" when unset; `ascend-patch doctor` looks at some."""
    return environ.get(name, "")


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's place among all of the job, as torchrun states it; 0 outside of one."""
    return int(environ.get("RANK") or 0)
