"""What every device can do. The devices themselves are in cpu/, cuda.py and npu.py."""

from dataclasses import dataclass
from typing import ClassVar, Protocol


@dataclass(frozen=True)
class Unavailable:
    """Why a device cannot be used on this machine.

    Attributes:
        reason: what was found, as a clause: "torch_npu is not installed in this Python environment".
        next_step: what to do about it, as a sentence.
        broken: True if something is installed but does not work. Passing over such a device in silence would
            hide a mistake, so it is named in the description of the device taken instead.
    """

    reason: str
    next_step: str
    broken: bool = False


class Device(Protocol):
    """A device that ``torch.cuda`` can be made to mean."""

    name: ClassVar[str]
    """``"npu"``, ``"cuda"`` or ``"cpu"``."""

    @classmethod
    def unavailable(cls) -> Unavailable | None:
        """Say why the device cannot be used here, or None if it can. Changes nothing."""

    def install(self) -> None:
        """Make ``torch.cuda`` mean this device in this process. A second call changes nothing."""

    def revert(self) -> None:
        """Undo :meth:`install`: every attribute it replaced is the original object again."""

    def describe(self) -> str:
        """One line for people, e.g. ``"cpu (torch.cuda translated to host memory, nccl to gloo)"``."""
