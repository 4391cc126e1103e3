"""The NPU device: torch_npu's own translation of ``torch.cuda``, and what it leaves out.

``torch_npu.contrib.transfer_to_npu`` maps CUDA calls, device strings and NCCL to the NPU when it is imported,
and offers no way back; :meth:`NpuDevice.revert` therefore undoes our additions only, and says so.
"""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar

import torch

from ascend_patch.compat.torch_npu import advice as pairing_advice
from ascend_patch.devices import compilation, hccl
from ascend_patch.devices.base import Unavailable
from ascend_patch.devices.loaders import with_own_generator
from ascend_patch.devices.substitute import Substitutions

_logger = logging.getLogger(__name__)


class NpuDevice:
    """An Ascend NPU, through torch_npu."""

    name: ClassVar[str] = "npu"
    _substitutions: ClassVar[Substitutions | None] = None

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """See :meth:`ascend_patch.devices.base.Device.unavailable`. Imports torch_npu if it is installed."""
        if importlib.util.find_spec("torch_npu") is None:
            return Unavailable(
                "torch_npu is not installed in this Python environment",
                f"Install CANN and the torch_npu release for this PyTorch. {pairing_advice(torch.__version__)} "
                "Without an NPU, run the command under `ascend-sim run -- …`.",
            )
        try:
            torch_npu = importlib.import_module("torch_npu")
        except Exception as error:
            return _cannot_load(error)
        if torch_npu.npu.device_count() == 0:
            return Unavailable(
                "torch_npu was loaded, but torch.npu.device_count() is 0",
                "Check `npu-smi info`, the driver and firmware, and ASCEND_RT_VISIBLE_DEVICES.",
                broken=True,
            )
        return None

    def install(self) -> None:
        """Make ``torch.cuda`` mean the NPU."""
        if NpuDevice._substitutions is not None:
            return
        torch_npu = importlib.import_module("torch_npu")
        importlib.import_module("torch_npu.contrib.transfer_to_npu")
        substitutions = Substitutions()
        _complete(substitutions, torch_npu)
        NpuDevice._substitutions = substitutions

    def revert(self) -> None:
        """Undo what was added to torch_npu's translation. The translation itself stays."""
        if NpuDevice._substitutions is not None:
            NpuDevice._substitutions.revert()
            NpuDevice._substitutions = None
            _logger.warning("torch_npu.contrib.transfer_to_npu stays in effect: it cannot be undone.")

    def describe(self) -> str:
        """Name the NPU."""
        torch_npu = importlib.import_module("torch_npu")
        return f"npu ({torch_npu.npu.get_device_name()}, torch_npu {torch_npu.__version__})"


def _cannot_load(error: Exception) -> Unavailable:
    """Why the import of torch_npu failed: CANN not found is by far the most frequent cause."""
    message = str(error).rstrip(" .")
    if ".so" in message:
        return Unavailable(
            f"torch_npu cannot be loaded because a library of CANN is missing: {message}",
            "Install CANN and run `source /usr/local/Ascend/ascend-toolkit/set_env.sh` in this shell. Without an "
            "NPU, run the command under `ascend-sim run -- …`.",
            broken=True,
        )
    return Unavailable(
        f"torch_npu cannot be imported: {type(error).__name__}: {message}",
        f"torch_npu and PyTorch must be of one release. {pairing_advice(torch.__version__)}",
        broken=True,
    )


def _complete(substitutions: Substitutions, torch_npu: ModuleType) -> None:
    """Add what transfer_to_npu does not map."""
    # tensor_parallel.random reads them to fork the generator of the device.
    substitutions.set(torch.cuda, "default_generators", _DefaultGenerators(torch_npu.npu))
    # The optimizers compare parameter.type() with "torch.cuda.FloatTensor" and its like.
    substitutions.wrap(torch.Tensor, "type", _type)
    # get_device_arch_version() reads .major, which the properties of an NPU do not have.
    substitutions.wrap(torch.cuda, "get_device_properties", _with_compute_capability)
    substitutions.set(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    # The host's generator of a resumed run goes on like that of one that was never interrupted.
    substitutions.wrap(torch.utils.data.DataLoader, "__init__", with_own_generator)
    compilation.install(substitutions)
    hccl.install(substitutions)


class _DefaultGenerators(Sequence):
    """``torch.npu.default_generators``, which is empty until the NPU is initialized: done by the first use."""

    def __init__(self, npu: ModuleType) -> None:
        self._npu = npu

    def __getitem__(self, index: Any) -> Any:
        self._npu.init()
        return self._npu.default_generators[index]

    def __len__(self) -> int:
        self._npu.init()
        return len(self._npu.default_generators)


def _type(type_: Callable) -> Callable:
    @functools.wraps(type_)
    def cuda_type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            return type_(self, *args, **kwargs).replace("torch.npu.", "torch.cuda.", 1)
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.npu.", 1)
        return type_(self, dtype, *args, **kwargs)

    return cuda_type


class _Properties:
    """The properties of an NPU, with the compute capability of the first GPU upstream's MoE accepts (8.0)."""

    major = 8
    minor = 0

    def __init__(self, properties: Any) -> None:
        self._properties = properties

    def __getattr__(self, name: str) -> Any:
        return getattr(self._properties, name)


def _with_compute_capability(get_device_properties: Callable) -> Callable:
    @functools.wraps(get_device_properties)
    def properties(device: Any = None) -> _Properties:
        return _Properties(get_device_properties(device))

    return properties
