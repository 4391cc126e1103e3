"""Which variant of each operator runs: chosen once per process, by device or by name.

A variant is the module ``ascend_patch.ops.<operator>.<variant>``; it defines the functions of the operator's
package under the same names and signatures. It is imported when it is chosen, so that a process never loads
what it does not use. Before :func:`select` every operator runs its ``torch`` variant.

A variant that cannot take a call (a head size, a dtype) raises :class:`Unsupported` before it does anything.
The ``torch`` variant then takes that call, unless the other one was asked for by name. :func:`run` counts the
calls by the variant that took them; :func:`report` is what the record of a run says about operators.

Importing a variant called ``torch`` binds that name in the operator's package. The packages' ``__init__.py``
therefore say ``from torch import Tensor`` and never use a global called ``torch``.
"""

import difflib
import importlib
import importlib.util
import logging
from collections import Counter
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ascend_patch.compat import torch_npu
from ascend_patch.engine.errors import AscendPatchError

logger = logging.getLogger(__name__)

OPERATORS = (
    "adam",
    "attention",
    "cross_entropy",
    "grouped_gemm",
    "paged_attention",
    "parallel_grouped_gemm",
    "parallel_linear",
    "permute",
    "rms_norm",
    "rotary",
    "swiglu",
    "topk_softmax",
)
"""Every operator, by the name of its package."""

VARIANTS = ("reference", "torch", "npu")
"""Every variant name; ``npu`` exists only for the operators that have Ascend kernels."""

_PREFERENCES = {"cpu": ("torch",), "cuda": ("torch",), "npu": ("npu", "torch")}

_PORTABLE = "torch"
"""The variant that takes every call."""

_selected: dict[str, ModuleType] = {}
_named: set[str] = set()
_calls: Counter[tuple[str, str, str]] = Counter()
"""Calls by operator, function and variant."""
_refused: Counter[tuple[str, str]] = Counter()
"""Calls by operator and the reason for which the chosen variant left them to the portable one."""


class Unsupported(Exception):
    """Raised by a variant, before it does anything, to leave a call to the portable variant.

    Args:
        reason: what was found and what is allowed, in one clause: "head size 320; npu_fusion_attention takes up
            to 256". It is logged once for each operator, so it names nothing that changes from call to call.
    """


def select(device: str, choices: Mapping[str, str] | None = None) -> dict[str, str]:
    """Choose the variant of every operator, replacing what was chosen before.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"npu"``; decides for the operators that ``choices`` does not name.
            A preferred variant that does not exist is passed over for the next one, and one line for all such
            operators is logged; one that exists and cannot be loaded is passed over with a warning.
        choices: variant by operator, for example ``{"grouped_gemm": "reference"}``. A variant named here is
            used or the call fails.

    Counts start at zero again.

    Returns:
        The variant chosen for each operator, as :func:`selected` would.

    Raises:
        ValueError: unknown device, operator or variant, or a named variant that cannot be loaded. The
            previous selection then stays as it was.
    """
    if device not in _PREFERENCES:
        raise ValueError(_unknown("device", device, tuple(_PREFERENCES)))
    choices = choices or {}
    for operator, variant in choices.items():
        if operator not in OPERATORS:
            raise ValueError(_unknown("operator", operator, OPERATORS))
        if variant not in VARIANTS:
            raise ValueError(_unknown(f"variant of {operator}", variant, VARIANTS))

    chosen: dict[str, ModuleType] = {}
    missing: dict[str, list[str]] = {}
    for operator in OPERATORS:
        if operator in choices:
            chosen[operator] = _load_named(operator, choices[operator])
        else:
            chosen[operator] = _load_preferred(operator, _PREFERENCES[device], missing)
    for variant, operators in missing.items():
        logger.info("no %s variant, so that the next one runs: %s", variant, ", ".join(operators))
    _selected.clear()
    _selected.update(chosen)
    _named.clear()
    _named.update(choices)
    _calls.clear()
    _refused.clear()
    return selected()


def selected() -> dict[str, str]:
    """The variant that each operator runs now, for reports."""
    return {operator: _variant_name(_selected.get(operator)) for operator in OPERATORS}


def implementation(operator: str) -> ModuleType:
    """The variant chosen for ``operator``: the module whose functions :func:`run` calls."""
    try:
        return _selected[operator]
    except KeyError:
        return _selected.setdefault(operator, _load(operator, _PORTABLE))


def run(operator: str, function: str, *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` of the variant chosen for ``operator``; the operators' packages do, after their checks.

    Raises:
        AscendPatchError: the variant was asked for by name and cannot take this call.
    """
    module = implementation(operator)
    try:
        result = getattr(module, function)(*args, **kwargs)
    except Unsupported as error:
        module = _portable_instead(operator, _variant_name(module), error)
        result = getattr(module, function)(*args, **kwargs)
    _calls[operator, function, _variant_name(module)] += 1
    return result


def report() -> dict[str, dict[str, Any]]:
    """By operator: the ``variant`` chosen, ``calls`` by function and variant, ``unsupported`` calls by reason."""
    found: dict[str, dict[str, Any]] = {
        operator: {"variant": variant, "calls": {}, "unsupported": {}} for operator, variant in selected().items()
    }
    for (operator, function, variant), count in sorted(_calls.items()):
        found[operator]["calls"].setdefault(function, {})[variant] = count
    for (operator, reason), count in sorted(_refused.items()):
        found[operator]["unsupported"][reason] = count
    return found


def _portable_instead(operator: str, variant: str, error: Unsupported) -> ModuleType:
    if variant == _PORTABLE:
        raise error
    if operator in _named:
        raise AscendPatchError(
            f"The {variant} variant of the operator {operator} was asked for by name and cannot take a call: {error}. "
            f"Leave {operator} out of ASCEND_PATCH_OPS, so that the {_PORTABLE} variant takes such calls."
        ) from error
    reason = str(error)
    if (operator, reason) not in _refused:
        logger.warning("operator %s: %s variant instead of %s: %s", operator, _PORTABLE, variant, reason)
    _refused[operator, reason] += 1
    return _load(operator, _PORTABLE)


def _load(operator: str, variant: str) -> ModuleType:
    module = importlib.import_module(f"ascend_patch.ops.{operator}.{variant}")
    reason = torch_npu.problem(operator) if variant == "npu" else None
    if reason is not None:
        raise Unsupported(reason)
    return module


def _load_named(operator: str, variant: str) -> ModuleType:
    try:
        return _load(operator, variant)
    except (ImportError, Unsupported) as error:
        raise ValueError(
            f"The {variant} variant of the operator {operator} was asked for but cannot be loaded ({error}). "
            f"It has: {', '.join(_existing(operator))}. Name one of these, or none to let the device decide."
        ) from error


def _load_preferred(operator: str, preferences: tuple[str, ...], missing: dict[str, list[str]]) -> ModuleType:
    """The first of ``preferences`` that loads; variants that do not exist are noted in ``missing``."""
    *preferred, last = preferences
    for variant in preferred:
        if variant not in _existing(operator):
            missing.setdefault(variant, []).append(operator)
            continue
        try:
            return _load(operator, variant)
        except (ImportError, Unsupported) as error:
            logger.warning("operator %s: its %s variant cannot be loaded (%s)", operator, variant, error)
    return _load(operator, last)


def _existing(operator: str) -> list[str]:
    package = f"ascend_patch.ops.{operator}"
    return [variant for variant in VARIANTS if importlib.util.find_spec(f"{package}.{variant}")]


def _variant_name(module: ModuleType | None) -> str:
    return _PORTABLE if module is None else module.__name__.rpartition(".")[2]


def _unknown(kind: str, found: str, allowed: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(found, allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {kind} {found!r}; known are {', '.join(allowed)}.{hint}"
