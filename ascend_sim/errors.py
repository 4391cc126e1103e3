"""The errors of the simulated device: every one names the operator that refused."""


class KernelError(RuntimeError):
    """A call that a reference kernel refuses.

    Attributes:
        operator: Full name of the operator, such as ``npu::npu_swiglu``; the registry sets it, so that a kernel says
            only what was found and what is allowed.
    """

    def __init__(self, message: str, operator: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.operator = operator

    def __str__(self) -> str:
        return f"{self.operator}: {self.message}" if self.operator else self.message


class ConstraintError(KernelError):
    """A documented constraint of an Ascend operator is broken; a device would fail or compute something else."""


class NotModelled(KernelError):
    """The operator exists on the device, but the simulator has no kernel for it or for this argument."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`ConstraintError` with `message` (what was found, what is allowed) unless `condition` holds."""
    if not condition:
        raise ConstraintError(message)
