"""Core attention: fused instead of materialised scores."""

from collections.abc import Callable

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine


def core_attention(original: Callable) -> Callable:
    """``LocalSpecProvider.core_attention`` that names this project's module."""

    def core_attention(self) -> type:
        from ascend_patch.modules.attention import DotProductAttention

        return DotProductAttention

    return core_attention


PATCHES = (
    Patch(
        id="attention.core",
        target="megatron.core.models.backends:LocalSpecProvider.core_attention",
        impl="ascend_patch.features.attention:core_attention",
        mode="wrap",
        upstream=">=0.16.1,<0.20",
        reason=(
            "Upstream's local attention writes scores of sequence x sequence to memory, repeats the key and value "
            "heads of grouped queries, and refuses packed sequences and context parallelism."
        ),
        remove_when="upstream's local attention is built on scaled_dot_product_attention.",
        when=without_transformer_engine,
        consumers=("megatron.core.transformer.dot_product_attention:DotProductAttention",),
    ),
)
