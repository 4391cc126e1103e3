"""The catalogue: one module for each area of upstream, each a tuple of patches and the thin wrappers they install.

Importing it imports neither torch nor Megatron: an implementation is imported when its patch fires.
"""

from ascend_patch.engine.patch import Patch
from ascend_patch.features import (
    activation,
    arguments,
    attention,
    context_parallel,
    determinism,
    dispatcher,
    expert_overlap,
    experts,
    host_waits,
    inference,
    inputs,
    instruction,
    lora,
    loss,
    norm,
    optimizer,
    platform,
    process_groups,
    recompute,
    restarts,
    rope,
    router,
    spec,
    split_sizes,
    tp_comm_overlap,
    trace,
)

#: Every patch, in the order of the catalogue.
PATCHES: tuple[Patch, ...] = (
    *spec.PATCHES,
    *attention.PATCHES,
    *norm.PATCHES,
    *rope.PATCHES,
    *activation.PATCHES,
    *router.PATCHES,
    *dispatcher.PATCHES,
    *split_sizes.PATCHES,
    *tp_comm_overlap.PATCHES,
    *expert_overlap.PATCHES,
    *experts.PATCHES,
    *loss.PATCHES,
    *optimizer.PATCHES,
    *host_waits.PATCHES,
    *platform.PATCHES,
    *process_groups.PATCHES,
    *recompute.PATCHES,
    *restarts.PATCHES,
    *arguments.PATCHES,
    *context_parallel.PATCHES,
    *determinism.PATCHES,
    *inference.PATCHES,
    *inputs.PATCHES,
    *instruction.PATCHES,
    *lora.PATCHES,
    *trace.PATCHES,
)
