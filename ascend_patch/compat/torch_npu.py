"""What is known about releases of torch_npu: the one that the operators were written against, which torch and CANN
each goes with, and whether the installed one has what a variant calls. torch is imported only where it is asked.
"""

import importlib.util
import logging
import pkgutil
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from ascend_patch.engine import operator_records
from ascend_patch.engine.calls import Call, calls_in
from ascend_patch.engine.operators import Finding, examine
from ascend_patch.engine.schema import Schema

logger = logging.getLogger(__name__)

REFERENCE = "2.9.1"
"""The release that the npu variants are written against and tested with."""

FIRST_TORCH_WITH_ALLOCATOR_CLASH = (2, 13)
"""From here on torch_npu and a CUDA build of PyTorch register the same allocator key, and the import aborts."""


@dataclass(frozen=True)
class Pairing:
    """Releases that were published to be used together."""

    torch_npu: str
    torch: str
    cann: str


SOURCE = "https://github.com/Ascend/pytorch/blob/master/COMPATIBILITY.en.md (21 August 2026)"
"""Where :data:`PAIRINGS` and :data:`PYTHONS` are from."""

PAIRINGS = (
    Pairing("2.7.1", "2.7.1", "8.3.RC1"),
    Pairing("2.7.1.post2", "2.7.1", "8.5.0"),
    Pairing("2.7.1.post4", "2.7.1", "9.0.0"),
    Pairing("2.7.1.post8", "2.7.1", "9.1.0"),
    Pairing("2.8.0", "2.8.0", "8.3.RC1"),
    Pairing("2.8.0.post2", "2.8.0", "8.5.0"),
    Pairing("2.8.0.post4", "2.8.0", "9.0.0"),
    Pairing("2.9.0", "2.9.0", "8.5.0"),
    Pairing("2.9.0.post2", "2.9.0", "9.0.0"),
    Pairing("2.9.0.post6", "2.9.0", "9.1.0"),
    Pairing("2.10.0.post4", "2.10.0", "9.1.0"),
    Pairing("2.11.0", "2.11.0", "9.1.0"),
    Pairing("2.12.0", "2.12.0", "9.1.0"),
)
"""The source's rows from torch_npu 2.7.1 on. It leaves releases out, 2.9.1 among them."""

PYTHONS = {
    "2.7": ("3.9", "3.10", "3.11", "3.12", "3.13"),
    "2.8": ("3.9", "3.10", "3.11", "3.12", "3.13"),
    "2.9": ("3.10", "3.11", "3.12", "3.13"),
    "2.10": ("3.10", "3.11", "3.12", "3.13"),
    "2.11": ("3.10", "3.11", "3.12", "3.13", "3.14"),
    "2.12": ("3.10", "3.11", "3.12", "3.13", "3.14"),
    "2.13": ("3.10", "3.11", "3.12", "3.13", "3.14"),
}
"""Versions of Python by version of torch, of which the first two numbers count."""


def minor(version: str) -> str:
    """The first two numbers of a version, "2.9"; "" for what is none."""
    try:
        return ".".join(map(str, Version(version).release[:2]))
    except InvalidVersion:
        return ""


def torch_of(torch_npu: str) -> str:
    """The release of torch that a release of torch_npu is built for: the same without what follows, ".post6"."""
    try:
        return Version(torch_npu).base_version
    except InvalidVersion:
        return ""


def cann_of(torch_npu: str) -> str:
    """The CANN that a release of torch_npu was published with; "" where :data:`SOURCE` does not say."""
    return next((pair.cann for pair in PAIRINGS if pair.torch_npu == torch_npu), "")


def older(cann: str, than: str) -> bool:
    """Whether one version of CANN, ``"8.3.RC1"``, is older than another; False where one cannot be read."""
    try:
        return Version(cann) < Version(than)
    except InvalidVersion:
        return False


def advice(torch: str) -> str:
    """Which torch_npu, and which CANN, go with a version of torch: one or two sentences."""
    base = torch.split("+")[0]
    fitting = [pair for pair in PAIRINGS if pair.torch == base] or [
        pair for pair in PAIRINGS if minor(pair.torch) == minor(base)
    ]
    text = f"PyTorch {base} needs torch_npu {base}: `pip install 'torch_npu=={base}'`."
    if not fitting:
        return f"{text} The table of pairs ({SOURCE}) has no CANN for it."
    pairs = ", ".join(f"torch_npu {pair.torch_npu} with CANN {pair.cann}" for pair in fitting)
    return f"{text} Published together: {pairs}."


def problem(operator: str) -> str | None:
    """Why the installed torch_npu cannot run the ``npu`` variant of an operator; None when it can.

    Every call of an npu operator in ``ascend_patch/ops/<operator>/`` is held against the schemas that torch_npu has
    registered. What differs without stopping the variant, a default, is logged.

    Args:
        operator: the package's name, ``"rms_norm"``.

    Raises:
        ContractError: the recorded schemas of :data:`REFERENCE` cannot be read.
    """
    findings = examine_installed(calls_of(operator))
    stops = [str(finding) for finding in findings if finding.stops]
    for finding in findings:
        if not finding.stops:
            logger.warning("operator %s: with this torch_npu, %s", operator, finding)
    if not stops:
        return None
    return f"{'; '.join(stops)}; it is written against torch_npu {REFERENCE}"


def examine_installed(calls: tuple[Call, ...]) -> tuple[Finding, ...]:
    """What does not fit between `calls` and the torch_npu of this process; each finding once."""
    if not calls:
        return ()
    reference = operator_records.read(REFERENCE).schemas
    installed: dict[str, Schema] = {}
    for operator in {call.operator for call in calls}:
        installed |= _registered(operator)
    return tuple(dict.fromkeys(finding for call in calls for finding in examine(call, installed, reference)))


def calls_of(operator: str) -> tuple[Call, ...]:
    """Every call of an npu operator in the modules of ``ascend_patch/ops/<operator>/``."""
    package = importlib.import_module(f"ascend_patch.ops.{operator}")
    calls: list[Call] = []
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        spec = importlib.util.find_spec(module.name)
        source = spec.loader.get_source(module.name) if spec and spec.loader else None  # type: ignore[attr-defined]
        if source and "npu_" in source:
            calls += calls_in(source)
    return tuple(calls)


def _registered(operator: str) -> dict[str, Schema]:
    import torch

    found = {}
    for schema in torch._C._jit_get_schemas_for_operator(f"npu::{operator}"):
        name = f"{operator}.{schema.overload_name}" if schema.overload_name else operator
        found[name] = Schema.parse(str(schema))
    return found
