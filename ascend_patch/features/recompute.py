"""Recomputation of single modules (``--recompute-modules moe_act layernorm …``) without TransformerEngine."""

from collections.abc import Callable
from functools import wraps

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine


def checkpoint_init(original: Callable) -> Callable:
    """``CheckpointWithoutOutput.__init__`` that takes its default ``fp8=False`` for what it says."""

    @wraps(original)
    def init(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        self.fp8 = False  # upstream: `fp8 is not None`, which is true of False

    return init


PATCHES = (
    Patch(
        id="recompute.without_output",
        target="megatron.core.tensor_parallel.random:CheckpointWithoutOutput.__init__",
        impl="ascend_patch.features.recompute:checkpoint_init",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason="The default fp8=False counts as fp8 upstream: a NameError (FP8GlobalStateManager) for every user.",
        remove_when="upstream tests the value of fp8 instead of whether it is None.",
        when=without_transformer_engine,
    ),
)
