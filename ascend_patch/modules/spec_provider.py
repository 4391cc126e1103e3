"""What ``--transformer-impl transformer_engine`` builds from where TransformerEngine is not installed."""

from megatron.core.models.backends import LocalSpecProvider
from megatron.core.transformer.torch_norm import WrappedTorchNorm

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.modules.attention import CausalDotProductAttention, DotProductAttention
from ascend_patch.modules.linear import LayerNormColumnParallelLinear


class AscendSpecProvider(LocalSpecProvider):
    """Stands for ``TESpecProvider``: the same structure and parameter names, from this project's modules.

    What :class:`LocalSpecProvider` answers is taken over, and the patches on it (attention, grouped experts,
    norms) with it: switching one of them off leaves upstream's local module in its place.
    """

    def linear(self) -> type:
        raise AscendPatchError(
            "Multi-latent attention needs a replicated linear layer that ascend_patch does not provide. "
            "Use --transformer-impl local."
        )

    def fuse_layernorm_and_linear(self) -> bool:
        return True

    def column_parallel_layer_norm_linear(self) -> type:
        return LayerNormColumnParallelLinear

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False, has_residual: bool = False) -> type:
        return WrappedTorchNorm  # upstream's name for patch norm.torch_norm's target

    def core_attention(self) -> type:
        attention = super().core_attention()
        return CausalDotProductAttention if attention is DotProductAttention else attention
