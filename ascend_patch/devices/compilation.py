"""``torch.compile`` and ``torch.jit.script`` return the function as it is, where ``torch.cuda`` is translated.

On the host both would have to see through the translated factories: TorchScript refuses Python wrappers around
operators, and Dynamo has its own notion of CUDA streams and generators. On an NPU the Triton that PyTorch brings
asks for libcuda. What upstream compiles are element-wise fusions; the operators that matter here have
implementations of their own in ``ascend_patch.ops``.
"""

from collections.abc import Callable
from typing import Any

import torch

from ascend_patch.devices.substitute import Substitutions


def install(substitutions: Substitutions) -> None:
    """Substitute both; used as ``f(function)``, ``@f`` and ``@f(option=…)``."""
    substitutions.set(torch, "compile", _compile)
    substitutions.set(torch.jit, "script", _script)


def _compile(model: Callable | None = None, **options: Any) -> Callable:
    """``torch.compile`` without compilation."""
    return _unchanged if model is None else model


def _script(obj: Any = None, *args: Any, **options: Any) -> Any:
    """``torch.jit.script`` without compilation."""
    return _unchanged if obj is None else obj


def _unchanged(function: Callable) -> Callable:
    return function
