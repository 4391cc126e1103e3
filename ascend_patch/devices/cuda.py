"""The CUDA device: the reference. ``torch.cuda`` means what it always means."""

from typing import ClassVar

import torch

from ascend_patch.devices.base import Unavailable


class CudaDevice:
    """A CUDA GPU. There is nothing to translate."""

    name: ClassVar[str] = "cuda"

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """See :meth:`ascend_patch.devices.base.Device.unavailable`."""
        # Ask the driver: torch.cuda.is_available() is True as well once the cpu device is installed.
        device_count = getattr(torch._C, "_cuda_getDeviceCount", None)
        if device_count is None:
            return Unavailable(
                f"PyTorch {torch.__version__} was built without CUDA",
                "Install a CUDA build of PyTorch, see https://pytorch.org/get-started.",
            )
        if device_count() == 0:
            return Unavailable(
                "this process sees no GPU, or no working driver",
                "Check `nvidia-smi` and CUDA_VISIBLE_DEVICES.",
            )
        return None

    def install(self) -> None:
        """Do nothing."""

    def revert(self) -> None:
        """Do nothing."""

    def describe(self) -> str:
        """Name the GPU."""
        return f"cuda ({torch.cuda.get_device_name()})"
