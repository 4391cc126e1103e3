"""Tensors, storages and files: whatever asks for CUDA memory gets host memory.

Substituted are the factories of ``torch``, the device-taking methods of ``Tensor`` and storages, the legacy
type names, ``with torch.device("cuda")``, ``torch.autocast("cuda")``, ``torch.Generator("cuda")`` and the
placement of CUDA tensors read by ``torch.load``. ``nn.Module.cuda`` and ``to_empty`` need nothing: they call
the tensor methods and factories.

``tensor.device`` is ``cpu``, the truth: PyTorch picks kernels by it. ``tensor.is_cuda`` is True beside
``is_cpu``: upstream's alltoall dispatcher turns its split sizes into numpy arrays for such tensors only, and
``all_to_all_single`` takes no tensors there.
"""

import functools
import sys
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.serialization
import torch.utils._device

from ascend_patch.devices.cpu.translation import HOST, names_cuda, to_host
from ascend_patch.devices.substitute import Substitutions

_LEGACY_TYPES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")


def install(substitutions: Substitutions) -> None:
    """Substitute everything the module docstring lists."""
    _install_factories(substitutions)
    _install_tensor_methods(substitutions)
    _install_type_names(substitutions)
    _install_contexts(substitutions)
    _install_storages(substitutions)


def _install_factories(substitutions: Substitutions) -> None:
    # PyTorch's own list of functions that take a device. Its cache must hold the original functions, because
    # `with torch.device("meta")` recognises the factory it intercepts by them: it is filled now. What it holds may be
    # older, though, and of a moment when transformers had put its own linspace in the place of torch's.
    torch.utils._device._device_constructors()
    constructors = torch.utils._device._device_constructors.__wrapped__()
    names = {n for n, value in vars(torch).items() if isinstance(value, Hashable) and value in constructors}
    names |= {name for name in vars(torch) if name.endswith("_like")}
    for name in sorted(names):
        substitutions.wrap(torch, name, _on_host)
    substitutions.wrap(torch, "as_tensor", _as_tensor)


def _install_tensor_methods(substitutions: Substitutions) -> None:
    for name in ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros"):
        substitutions.wrap(torch.Tensor, name, _on_host)
    substitutions.wrap(torch.Tensor, "to", _to)
    substitutions.wrap(torch.nn.Module, "to", _to)
    substitutions.set(torch.Tensor, "is_cuda", property(lambda self: self.is_cpu))
    substitutions.set(torch.Tensor, "cuda", _cuda)
    substitutions.set(torch.Tensor, "pin_memory", _pin_memory)
    substitutions.set(torch.Tensor, "record_stream", _record_stream)


def _on_host(factory: Callable) -> Callable:
    """Wrap a function whose device is a keyword argument."""

    @functools.wraps(factory)
    def on_host(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs:  # most calls on the hot path have none
            if "device" in kwargs:
                kwargs["device"] = to_host(kwargs["device"])
            if kwargs.get("pin_memory"):  # page-locking host memory takes an accelerator
                kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return on_host


def _as_tensor(as_tensor: Callable) -> Callable:
    """``torch.as_tensor(data, dtype, device)`` is the one factory that takes the device by position too."""

    @functools.wraps(as_tensor)
    def as_host_tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
        return as_tensor(data, dtype=dtype, device=to_host(device))

    return as_host_tensor


def _to(to: Callable) -> Callable:
    """``to(device, …)``, ``to(dtype, …)``, ``to(other, …)`` and ``to(device=…)``, of tensors and modules."""

    @functools.wraps(to)
    def to_on_host(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and names_cuda(args[0]):
            args = (HOST, *args[1:])
        elif "device" in kwargs:
            kwargs["device"] = to_host(kwargs["device"])
        return to(self, *args, **kwargs)

    return to_on_host


def _cuda(
    self: torch.Tensor,
    device: Any = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format = torch.preserve_format,
) -> torch.Tensor:
    """``Tensor.cuda``. As on a GPU, a tensor that is already there is returned itself."""
    return self.to(HOST, non_blocking=non_blocking, memory_format=memory_format)


def _pin_memory(self: torch.Tensor, device: Any = None) -> torch.Tensor:
    """``Tensor.pin_memory``: there is no copy to another memory that pinning could speed up."""
    return self


def _record_stream(self: torch.Tensor, stream: Any) -> None:
    """``Tensor.record_stream``: keeps CUDA's caching allocator from reusing memory; the host has none."""


def _install_type_names(substitutions: Substitutions) -> None:
    # The optimizers sort parameters by `param.type() == "torch.cuda.FloatTensor"` and refuse all other names.
    substitutions.wrap(torch.Tensor, "type", _type)
    for prefix in _LEGACY_TYPES:
        name = f"{prefix}Tensor"
        substitutions.set(torch.cuda, name, getattr(torch, name))


def _type(type_: Callable) -> Callable:
    @functools.wraps(type_)
    def cuda_type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            name = type_(self, *args, **kwargs)
            return name.replace("torch.", "torch.cuda.", 1) if self.device.type == "cpu" else name
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.", 1)
        return type_(self, dtype, *args, **kwargs)

    return cuda_type


def _install_contexts(substitutions: Substitutions) -> None:
    # `with torch.device(…)` and torch.set_default_device both enter a DeviceContext, the former from C++.
    substitutions.wrap(torch.utils._device.DeviceContext, "__init__", _translate_first_argument)
    # Otherwise autocast("cuda") would be entered and change nothing, because it acts on CUDA operators only.
    substitutions.wrap(torch.autocast, "__init__", _autocast_init)
    substitutions.wrap(torch, "Generator", _generator_class)


def _translate_first_argument(init: Callable) -> Callable:
    @functools.wraps(init)
    def init_on_host(self: Any, device: Any) -> None:
        init(self, to_host(device))

    return init_on_host


def _autocast_init(init: Callable) -> Callable:
    @functools.wraps(init)
    def init_on_host(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    return init_on_host


def _generator_class(generator: type) -> type:
    """``torch.Generator`` whose device may be CUDA. Upstream's text generation makes one."""

    class _GeneratorType(type(generator)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, generator)  # also those that existed before, such as the default one

    class Generator(generator, metaclass=_GeneratorType):
        def __new__(cls, device: Any = HOST) -> Any:
            return super().__new__(cls, device=to_host(device))

    return Generator


def _install_storages(substitutions: Substitutions) -> None:
    substitutions.set(torch.UntypedStorage, "cuda", _storage_cuda)
    substitutions.set(torch.TypedStorage, "cuda", _storage_cuda)
    # Files written on a GPU carry "cuda:0" as location, and so does map_location="cuda". The registry is
    # searched in order of priority; the lowest number comes before PyTorch's own entry for CUDA.
    entry = (-sys.maxsize, _no_tag, _restore_cuda_on_host)
    torch.serialization.register_package(*entry)
    substitutions.on_revert(lambda: torch.serialization._package_registry.remove(entry))


def _storage_cuda(self: Any, device: Any = None, non_blocking: bool = False) -> Any:
    """``UntypedStorage.cuda``, for ``torch.load(map_location=lambda storage, location: storage.cuda())``."""
    return self


def _no_tag(storage: Any) -> None:
    """Let PyTorch tag the storages that are saved: they are CPU storages, loadable everywhere."""


def _restore_cuda_on_host(storage: Any, location: str) -> Any:
    """Leave a storage that is to be restored on CUDA where ``torch.load`` read it: in host memory."""
    return storage if location.startswith("cuda") else None
