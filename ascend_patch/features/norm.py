"""Layer norms: what stands in for TransformerEngine's and Apex's."""

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine

PATCHES = (
    Patch(
        id="norm.torch_norm",
        target="megatron.core.transformer.torch_norm:WrappedTorchNorm",
        impl="ascend_patch.modules.norm:Norm",
        mode="replace",
        upstream=">=0.16.1,<0.20",
        reason=(
            "Upstream's torch fallback refuses --sequence-parallel and the default persist_layer_norm, keeps its "
            "parameters in float32 whatever --bf16 says, and is not fused."
        ),
        remove_when="WrappedTorchNorm supports sequence parallelism and params_dtype, and torch fuses RMSNorm.",
        when=without_transformer_engine,
    ),
)
