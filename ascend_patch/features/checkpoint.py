"""Saving checkpoints, where the host's memory is the device's memory too."""

from collections.abc import Callable
from functools import wraps

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import on_cpu


def validate_args(original: Callable) -> Callable:
    """``validate_args`` that refuses to save in the background on the cpu device."""

    @wraps(original)
    def validate(args, *rest, **kwargs):
        if getattr(args, "async_save", False):
            raise AscendPatchError(
                "--async-save was given on the cpu device. Upstream's snapshot is a copy to host memory, where the "
                "weights already are: training would change them while they are being written. Leave out --async-save."
            )
        return original(args, *rest, **kwargs)

    return validate


PATCHES = (
    Patch(
        id="checkpoint.async_save",
        target="megatron.training.arguments:validate_args",
        impl="ascend_patch.features.checkpoint:validate_args",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason="--async-save on host memory would write a checkpoint that training is changing.",
        remove_when="upstream's asynchronous writer clones tensors that are on the host already.",
        when=on_cpu,
    ),
)
