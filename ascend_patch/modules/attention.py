"""Core attention on :func:`ascend_patch.ops.attention`: fused, with grouped queries, windows and packing."""

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.dot_product_attention import DotProductAttention as UpstreamDotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.utils import is_layer_window_attention

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.ops.attention import attention, attention_thd

CAUSAL = (AttnMaskType.causal, AttnMaskType.padding_causal)


class DotProductAttention(UpstreamDotProductAttention):
    """Upstream's module with the scores never materialised.

    An explicit ``attention_mask`` (True where attention is *not* allowed, as everywhere upstream) is honoured
    like upstream does; :class:`CausalDotProductAttention` does what TransformerEngine does with it.
    """

    uses_mask = True

    def __init__(self, config, layer_number: int, *args, **kwargs) -> None:
        super().__init__(config, layer_number, *args, **kwargs)
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window = config.window_size if windowed else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """``query [sq, b, np, hn]``, ``key`` and ``value [sk, b, ng, hn]`` -> ``[sq, b, np * hn]``.

        Packed (``qkv_format == 'thd'``): ``[t, n, hn]`` -> ``[t, np * hn]``.
        """
        if attention_bias is not None:
            raise AscendPatchError("Attention bias is not supported; Mixtral and Mistral have none.")
        if self.config.softmax_type != "vanilla":
            return super().forward(
                query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params, **kwargs
            )
        causal = (attn_mask_type or self.attn_mask_type) in CAUSAL
        options = {
            "scale": self.softmax_scale,
            "causal": causal,
            "window": self.window,
            "dropout_p": self.attention_dropout.p if self.training else 0.0,
        }
        if packed_seq_params is not None:
            return self._with_dropout_state(
                attention_thd,
                query,
                key,
                value,
                packed_seq_params.cu_seqlens_q,
                packed_seq_params.cu_seqlens_kv,
                **options,
            )
        if attention_mask is not None and (self.uses_mask or not causal):
            # The mask says everything, the causal part included.
            options |= {"mask": attention_mask, "causal": False}
        return self._with_dropout_state(attention, query, key, value, **options)

    def _with_dropout_state(self, function, *args, **kwargs) -> torch.Tensor:
        if kwargs["dropout_p"] == 0.0 or self.config.sequence_parallel:
            return function(*args, **kwargs)
        # Heads are split over tensor parallel ranks, so each rank draws from a state of its own.
        with get_cuda_rng_tracker().fork():
            return function(*args, **kwargs)


class CausalDotProductAttention(DotProductAttention):
    """Stands for ``TEDotProductAttention``: a causal layer ignores the mask, which then only repeats itself."""

    uses_mask = False
