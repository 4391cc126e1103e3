"""``ASCEND_PATCH_TRACE``: digests of what each module computes, in the steps that it names."""

from collections.abc import Callable
from functools import cache, wraps

from ascend_patch.config import Config, Trace, rank
from ascend_patch.engine.patch import Environment, Patch


def train_step(original: Callable) -> Callable:
    """``train_step`` that records the steps of ``ASCEND_PATCH_TRACE`` and leaves the others alone."""
    discarded = False

    @cache
    def asked() -> Trace | None:  # at the first step, and not at each
        return Config.from_environment().trace

    @wraps(original)
    def traced(forward_step_func, data_iterator, model, optimizer, *args, **kwargs):
        nonlocal discarded
        from megatron.training import get_args

        from ascend_patch.trace import store
        from ascend_patch.trace.job import recorded

        trace, step = asked(), get_args().curr_iteration + 1
        if trace is not None and not discarded:
            store.discard(trace.folder, [number for number in trace.steps if number >= step], rank())
            discarded = True
        if trace is None or step not in trace.steps:
            return original(forward_step_func, data_iterator, model, optimizer, *args, **kwargs)
        with recorded(trace.folder, step, get_args(), model, optimizer):
            return original(forward_step_func, data_iterator, model, optimizer, *args, **kwargs)

    return traced


def where_traced(environment: Environment) -> str | None:
    """Nothing is wrapped in a run that is not traced."""
    return None if Config.from_environment().trace is not None else "ASCEND_PATCH_TRACE is not set"


PATCHES = (
    Patch(
        id="trace.train_step",
        target="megatron.training.training:train_step",
        impl="ascend_patch.features.trace:train_step",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason="Upstream cannot say where two runs begin to differ.",
        remove_when="upstream records digests of outputs and gradients that can be compared across layouts.",
        when=where_traced,
        consumers=(
            "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer._copy_model_grads_to_main_grads",
            "megatron.core.pipeline_parallel.schedules:forward_step_calc_loss",
        ),
    ),
)
