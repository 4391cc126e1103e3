"""The parts of ``torch.cuda`` that have no meaning on the host: they raise, naming what to do instead.

Without these, a CUDA build of PyTorch would fail deep in its driver calls ("Found no NVIDIA driver"), and a
CPU build with a missing attribute.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.cuda.graphs
import torch.cuda.memory
import torch.cuda.profiler

from ascend_patch.devices.substitute import Substitutions
from ascend_patch.engine.errors import AscendPatchError

_GRAPHS = "Train without CUDA graphs (--cuda-graph-impl none, no --enable-cuda-graph)."
_POOLS = "Train without memory pools of your own (no --use-nccl-ub, no --nccl-ub)."
_HISTORY = "Train without --record-memory-history. torch.cuda.max_memory_allocated() is measured here too."
_PROFILER = "Profile with --use-pytorch-profiler, which records CPU operators."
_SENSORS = "The host has no such sensor for one process; train without --log-straggler."
_STREAMS = "Streams of another library cannot be adopted by the host."

_CLASSES = {
    "CUDAGraph": _GRAPHS,
    "graph": _GRAPHS,
    "MemPool": _POOLS,
    "ExternalStream": _STREAMS,
}
_FUNCTIONS = {
    "graph_pool_handle": _GRAPHS,
    "make_graphed_callables": _GRAPHS,
    "use_mem_pool": _POOLS,
    "change_current_allocator": _POOLS,
    "memory_snapshot": _HISTORY,
    "memory_summary": _HISTORY,
    "_record_memory_history": _HISTORY,
    "_snapshot": _HISTORY,
    "_dump_snapshot": _HISTORY,
    "cudart": _PROFILER,
    "temperature": _SENSORS,
    "power_draw": _SENSORS,
    "utilization": _SENSORS,
    "clock_rate": _SENSORS,
    "get_stream_from_external": _STREAMS,
}


def install(substitutions: Substitutions) -> None:
    """Replace every class and function of the two tables, wherever ``torch.cuda`` exposes it."""
    owners = (torch.cuda, torch.cuda.graphs, torch.cuda.memory, torch.cuda.profiler, torch.cuda.streams)
    for names, make in ((_CLASSES, _unsupported_class), (_FUNCTIONS, _unsupported_function)):
        for name, advice in names.items():
            replacement = make(name, advice)
            for owner in owners:
                if name in vars(owner):
                    substitutions.set(owner, name, replacement)


def _refuse(name: str, advice: str) -> NoReturn:
    raise AscendPatchError(f"torch.cuda.{name} was used, but the device of this process is the cpu. {advice}")


def _unsupported_function(name: str, advice: str) -> Callable:
    def unsupported(*args: Any, **kwargs: Any) -> NoReturn:
        _refuse(name, advice)

    unsupported.__name__ = unsupported.__qualname__ = name
    return unsupported


def _unsupported_class(name: str, advice: str) -> type:
    """A class, because upstream also names these in annotations and isinstance checks.

    Looking for a method of it raises as well: upstream asks ``hasattr(CUDAGraph, "register_generator_state")``
    and would conclude that PyTorch is too old.
    """

    class Refusing(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
            _refuse(name, advice)

        def __getattr__(cls, attribute: str) -> NoReturn:
            if attribute.startswith("__"):  # the interpreter's own questions
                raise AttributeError(attribute)
            _refuse(f"{name}.{attribute}", advice)

    return Refusing(name, (), {"__doc__": advice})
