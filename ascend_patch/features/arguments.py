"""Flags that cannot be honoured are refused when they are parsed, by name and with what to use instead.

Without this upstream advises to install TransformerEngine, fails while it builds the model, or (on the host)
runs and silently does not do what the flag says.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import on_cpu, without_transformer_engine


@dataclass(frozen=True)
class Refusal:
    """A flag, the parsed argument it sets, why it is refused and what to do.

    ``allowed`` is the argument's value that means the flag was not given. With ``only`` no other value is refused, with
    ``unless`` none is where that module is installed.
    """

    flag: str
    argument: str
    reason: str
    instead: str
    allowed: Any = False
    only: Any = None
    unless: str | None = None

    def refuses(self, value: Any) -> bool:
        """Whether ``value``, of the parsed argument, is refused here."""
        if value in (self.allowed, None) or self.only not in (None, value):
            return False
        return self.unless is None or importlib.util.find_spec(self.unless) is None


WITHOUT_TRANSFORMER_ENGINE = (
    Refusal(
        "--hybrid-context-parallel",
        "hybrid_context_parallel",
        "context parallel groups that change from batch to batch need TransformerEngine.",
        "Leave it out: --context-parallel-size shares every sequence alike.",
    ),
    Refusal(
        "--moe-token-dispatcher-type",
        "moe_token_dispatcher_type",
        "that dispatcher runs on DeepEP, HybridEP or NCCL EP, which are kernels for NVIDIA GPUs, and module deep_ep is "
        "not installed.",
        "Use --moe-token-dispatcher-type alltoall or allgather: the same tokens reach the same experts.",
        only="flex",
        unless="deep_ep",
    ),
    Refusal(
        "--delay-wgrad-compute",
        "delay_wgrad_compute",
        "computing weight gradients apart from the rest of the backward pass needs TransformerEngine's linear layers.",
        "Leave it out: the results are the same, and --overlap-moe-expert-parallel-comm works without it.",
    ),
    Refusal(
        "--moe-router-fusion",
        "moe_router_fusion",
        "that fused router is TransformerEngine's; the router of ascend_patch needs no flag.",
        "Leave it out.",
    ),
    Refusal(
        "--use-precision-aware-optimizer",
        "use_precision_aware_optimizer",
        "optimizer states of reduced precision need TransformerEngine's FusedAdam.",
        "Leave it out: the states are float32.",
    ),
    Refusal(
        "--cpu-offloading-num-layers",
        "cpu_offloading_num_layers",
        "moving activations to host memory until the backward pass needs TransformerEngine.",
        "Use --recompute-granularity, which also saves the memory of activations.",
        allowed=0,
    ),
)

ON_CPU = (
    Refusal(
        "--async-save",
        "async_save",
        "upstream's snapshot is a copy to host memory, where the weights already are, so that training would change "
        "them while they are written.",
        "Leave it out.",
    ),
    Refusal(
        "--optimizer-cpu-offload",
        "optimizer_cpu_offload",
        "the optimizer is on the host already, and upstream's offloading would update copies that nobody reads.",
        "Leave it out.",
    ),
    Refusal(
        "--use-nccl-ub", "nccl_ub", "buffers registered with NCCL need a GPU; collectives run on Gloo.", "Leave it out."
    ),
)


def _refusing(refusals: tuple[Refusal, ...], original: Callable) -> Callable:
    @wraps(original)
    def validate_args(args, *rest, **kwargs):
        for refusal in refusals:
            value = getattr(args, refusal.argument, refusal.allowed)
            if refusal.refuses(value):
                given = refusal.flag if value is True else f"{refusal.flag} {value}"
                raise AscendPatchError(f"{given} was given, but {refusal.reason} {refusal.instead}")
        return original(args, *rest, **kwargs)

    return validate_args


refuse_without_transformer_engine = partial(_refusing, WITHOUT_TRANSFORMER_ENGINE)
refuse_on_cpu = partial(_refusing, ON_CPU)

_patch = partial(
    Patch,
    target="megatron.training.arguments:validate_args",
    mode="wrap",
    upstream=">=0.17,<0.20",
)

PATCHES = (
    _patch(
        id="arguments.transformer_engine",
        impl="ascend_patch.features.arguments:refuse_without_transformer_engine",
        reason="Upstream answers these flags with the advice to install TransformerEngine, some only in mid-run.",
        remove_when="ascend_patch implements the last of them.",
        when=without_transformer_engine,
    ),
    _patch(
        id="arguments.cpu",
        impl="ascend_patch.features.arguments:refuse_on_cpu",
        reason="On host memory these flags would write torn checkpoints, train nothing, or compile for a GPU.",
        remove_when="upstream's implementations no longer assume that device and host memory are two.",
        when=on_cpu,
    ),
)
