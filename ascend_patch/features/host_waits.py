"""Values that upstream reads back from the device, for which the host then waits, although it need not.

What is left in a training step: one wait for the sum of squared gradients (clipping needs it), one for the checks of
each bucket of gradients and one for those of the loss (``--no-check-for-nan-in-loss-and-grad`` leaves these out), one
for the rerun machine, and one for each value that is logged, when it is.
"""

from collections.abc import Callable
from functools import partial, wraps

from ascend_patch.engine.patch import Patch


def validate_result(original: Callable) -> Callable:
    """``RerunStateMachine.validate_result`` of a result that is on the host, copied there once for all its checks."""
    from ascend_patch.ops.derived import DerivedValues

    copies = DerivedValues()

    @wraps(original)
    def validate_on_host(self, result, rejection_func, *args, **kwargs) -> None:
        import torch

        if isinstance(result, torch.Tensor) and result.device.type != "cpu":
            result = copies.get(result, None, result.detach().cpu)
        return original(self, result, rejection_func, *args, **kwargs)

    return validate_on_host


def reduce_any(original: Callable) -> Callable:
    """``RerunStateMachine._reduce_any``: one process knows by itself what all of them say."""

    @wraps(original)
    def reduce_in_a_world(self, value):
        import torch

        if torch.distributed.get_world_size() > 1:
            return original(self, value)
        return tuple(map(bool, value)) if isinstance(value, list) else bool(value)

    return reduce_in_a_world


def reduce_max_stat(original: Callable) -> Callable:
    """``reduce_max_stat_across_model_parallel_group(stat, group)``: -1 stands for None; read back once, not twice."""

    @wraps(original)
    def reduce_stat(stat, *args, **kwargs):
        import torch

        group = _model_parallel_group(*args, **kwargs)
        if group.size() == 1:
            return stat
        largest = torch.tensor(
            [-1.0 if stat is None else stat], dtype=torch.float32, device=torch.cuda.current_device()
        )
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX, group=group)
        value = largest.item()
        return None if value == -1.0 else value

    return reduce_stat


def logical_and(original: Callable) -> Callable:
    """``logical_and_across_model_parallel_group(input, group)``: a group of one agrees with itself."""

    @wraps(original)
    def agreed(input, *args, **kwargs) -> bool:
        if _model_parallel_group(*args, **kwargs).size() == 1:
            return input is True
        return original(input, *args, **kwargs)

    return agreed


def get_loss_scale(original: Callable) -> Callable:
    """``get_loss_scale`` of an optimizer that scales nothing: the number 1, on the host.

    A tensor without dimensions, which multiplies one of any device. Upstream's own lies on the device and is read back
    for the log in each step.
    """

    @wraps(original)
    def loss_scale(self):
        import torch

        if getattr(self, "grad_scaler", None) is not None:
            return original(self)
        return torch.ones((), device="cpu")

    return loss_scale


def _model_parallel_group(group=None):
    """Upstream's default for an argument that releases before 0.19 lack."""
    from megatron.core.parallel_state import get_model_parallel_group

    return group if group is not None else get_model_parallel_group()


_HERE = "ascend_patch.features.host_waits"
_MACHINE = "megatron.core.rerun_state_machine:RerunStateMachine"
_OPTIMIZER = "megatron.core.optimizer.optimizer"

_validation = partial(
    Patch,
    id="training.validation",
    mode="wrap",
    upstream=">=0.16.1,<0.20",
    reason=(
        "Each check of a loss or a gradient norm (for NaN, then for Inf) launches its own kernels and has the host "
        "wait for the answer; a single process asks its device what all processes say."
    ),
    remove_when="upstream checks a result once, or on the device.",
)
_statistics = partial(
    Patch,
    id="training.statistics",
    mode="wrap",
    reason=(
        "In each step gradient norm, learning rate and success travel to the device and back, the first two read "
        "twice, even where the model parallel group is one process."
    ),
    remove_when="upstream reduces them only where there is something to reduce, and reads them once.",
)
_scale = partial(
    Patch,
    id="optimizer.loss_scale",
    impl=f"{_HERE}:get_loss_scale",
    mode="wrap",
    upstream=">=0.16.1,<0.20",
    reason="The loss scale of bf16 and fp32 is the constant 1, which each step reads back from the device for the log.",
    remove_when="upstream keeps the constant on the host.",
    consumers=(f"{_OPTIMIZER}:MegatronOptimizer.scale_loss",),
)

PATCHES = (
    _validation(target=f"{_MACHINE}.validate_result", impl=f"{_HERE}:validate_result"),
    _validation(target=f"{_MACHINE}._reduce_any", impl=f"{_HERE}:reduce_any"),
    *(
        _statistics(
            target=f"{module}:{function}_across_model_parallel_group", impl=f"{_HERE}:{function}", upstream=versions
        )
        for module, versions in (
            ("megatron.training.utils", ">=0.17,<0.18"),
            ("megatron.training.utils.common_utils", ">=0.18,<0.20"),
        )
        for function in ("reduce_max_stat", "logical_and")
    ),
    _scale(target=f"{_OPTIMIZER}:MixedPrecisionOptimizer.get_loss_scale"),
    _scale(target=f"{_OPTIMIZER}:FP32Optimizer.get_loss_scale"),
)
