"""``--transformer-impl transformer_engine``, upstream's default, without TransformerEngine."""

from functools import partial

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine

_patch = partial(
    Patch,
    id="spec.transformer_engine",
    mode="replace",
    upstream=">=0.16.1,<0.20",
    reason=(
        "Upstream's default --transformer-impl ends in \"'NoneType' object is not callable\" without "
        "TransformerEngine, so that a script written for GPUs does not start."
    ),
    remove_when="upstream selects a BackendSpecProvider by name or plugin.",
    when=without_transformer_engine,
)
_PROVIDER = "ascend_patch.modules.spec_provider:AscendSpecProvider"

PATCHES = (
    _patch(target="megatron.core.extensions.transformer_engine_spec_provider:TESpecProvider", impl=_PROVIDER),
    _patch(
        target="megatron.core.models.gpt.gpt_layer_specs:TESpecProvider",
        impl=_PROVIDER,
        consumers=("megatron.core.models.gpt.gpt_layer_specs:get_gpt_layer_with_transformer_engine_spec",),
    ),
    _patch(
        target="megatron.core.models.gpt.gpt_layer_specs:TENorm",
        impl="ascend_patch.modules.norm:Norm",
        consumers=("megatron.core.models.gpt.gpt_layer_specs:get_gpt_decoder_block_spec",),
    ),
)
