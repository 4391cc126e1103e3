"""``--overlap-dispatch-backward-with-experts-wgrad``: the all-to-all of experts during their products.

Upstream means one of them, that of the backward pass that takes the gradients of tokens home, and computes the weight
gradients of TransformerEngine's layers meanwhile. Here the others are overlapped too: the linear layers of the experts
do the communication before or after their product. It is for whoever asks: no bit of a result depends on it on the
host, but whether it is faster depends on sizes and on the machine.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine

FLAG = "--overlap-dispatch-backward-with-experts-wgrad"

#: Field of the configuration, whether its value is one that goes with the flag, and what is said otherwise.
_NEEDED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "overlap_moe_expert_parallel_comm",
        lambda value: not value,
        "--overlap-moe-expert-parallel-comm hides the same communication behind another batch. Leave one of them out.",
    ),
    (
        "moe_token_dispatcher_type",
        lambda value: value == "alltoall",
        "what it overlaps is the communication of --moe-token-dispatcher-type alltoall. Use that one.",
    ),
    (
        "expert_model_parallel_size",
        lambda value: value > 1,
        "with --expert-model-parallel-size 1 nothing is sent. Leave it out.",
    ),
    (
        "expert_tensor_parallel_size",
        lambda value: value == 1,
        "experts that are split between ranks are not overlapped. Use --expert-tensor-parallel-size 1.",
    ),
    ("moe_grouped_gemm", bool, "it overlaps grouped products. Add --moe-grouped-gemm."),
    (
        "moe_pad_expert_input_to_capacity",
        lambda value: not value,
        "it does not go with --moe-pad-expert-input-to-capacity. Leave one of them out.",
    ),
    (
        "moe_shared_expert_overlap",
        lambda value: not value,
        "--moe-shared-expert-overlap hides the same communication behind a shared expert. Leave one of them out.",
    ),
    (
        "moe_apply_probs_on_input",
        lambda value: not value,
        "it does not go with --moe-apply-probs-on-input, where tokens are changed on arrival. Leave one of them out.",
    ),
)


def config_post_init(original: Callable) -> Callable:
    """``TransformerConfig.__post_init__`` that takes the flag, and says what it cannot be had with."""

    @wraps(original)
    def post_init(self) -> None:
        wanted = self.overlap_dispatch_backward_with_experts_wgrad
        self.overlap_dispatch_backward_with_experts_wgrad = False
        original(self)
        self.overlap_dispatch_backward_with_experts_wgrad = wanted
        if wanted:
            _check(self)

    return post_init


def _check(config: Any) -> None:
    from ascend_patch.engine.errors import AscendPatchError

    for name, goes_with, reason in _NEEDED:
        if not goes_with(getattr(config, name)):
            raise AscendPatchError(f"{FLAG} was given, but {reason}")


def moe_layer_init(original: Callable) -> Callable:
    """``MoELayer.__init__``: with the flag, a layer whose experts do the communication."""

    @wraps(original)
    def init(self, config, submodules=None, layer_number=None, pg_collection=None, *args, **kwargs) -> None:
        original(self, config, submodules, layer_number, pg_collection, *args, **kwargs)
        if config.overlap_dispatch_backward_with_experts_wgrad:
            from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

            from ascend_patch.modules.expert_overlap import overlap

            overlap(self, pg_collection or get_default_pg_collection())

    return init


_HERE = "ascend_patch.features.expert_overlap"
_patch = partial(
    Patch,
    id="moe.expert_overlap",
    mode="wrap",
    upstream=">=0.18,<0.20",
    reason="Upstream refuses the flag without TransformerEngine, and overlaps one of four exchanges of tokens with it.",
    remove_when="upstream overlaps the all-to-all of experts with their products in layers without TransformerEngine.",
    when=without_transformer_engine,
)
_DISPATCHER = "megatron.core.transformer.moe.token_dispatcher:MoEAlltoAllTokenDispatcher"

PATCHES = (
    _patch(
        target="megatron.core.transformer.transformer_config:TransformerConfig.__post_init__",
        impl=f"{_HERE}:config_post_init",
    ),
    _patch(
        target="megatron.core.transformer.moe.moe_layer:MoELayer.__init__",
        impl=f"{_HERE}:moe_layer_init",
        consumers=(
            f"{_DISPATCHER}.__init__",
            f"{_DISPATCHER}.preprocess",
            f"{_DISPATCHER}.dispatch_preprocess",
            f"{_DISPATCHER}.token_dispatch",
            f"{_DISPATCHER}.dispatch_postprocess",
            f"{_DISPATCHER}.combine_preprocess",
            f"{_DISPATCHER}.token_combine",
            "megatron.core.transformer.moe.moe_layer:MoELayer.routed_experts_compute",
            "megatron.core.transformer.moe.experts:TEGroupedMLP.forward",
        ),
    ),
)
