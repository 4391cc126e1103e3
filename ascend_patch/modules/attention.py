"""Core attention on :func:`ascend_patch.ops.attention`: fused, with grouped queries, windows and packing.

With context parallelism on :mod:`ascend_patch.context_parallel`.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.dot_product_attention import DotProductAttention as UpstreamDotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.utils import is_layer_window_attention

from ascend_patch.context_parallel import limits
from ascend_patch.context_parallel.gathered import gathered_attention
from ascend_patch.context_parallel.heads import heads_attention
from ascend_patch.context_parallel.ring import ring_attention
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.ops.attention import attention, attention_thd
from ascend_patch.ops.derived import host_list

CAUSAL = (AttnMaskType.causal, AttnMaskType.padding_causal)


class DotProductAttention(UpstreamDotProductAttention):
    """Upstream's module with the scores never materialised.

    An explicit ``attention_mask`` (True where attention is *not* allowed, as everywhere upstream) is honoured
    like upstream does; :class:`CausalDotProductAttention` does what TransformerEngine does with it.
    """

    uses_mask = True

    def __init__(self, config, layer_number: int, *args, cp_comm_type: str | None = None, **kwargs) -> None:
        # Upstream's module refuses context parallelism, which it does not do.
        alone = copy.copy(config)
        alone.context_parallel_size = 1
        super().__init__(alone, layer_number, *args, **kwargs)
        self.config = config
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window = config.window_size if windowed else None
        self.split_attention: Callable[..., torch.Tensor] | None = None
        if config.context_parallel_size > 1:
            self._split(limits.communication_type(cp_comm_type), kwargs.get("pg_collection"))

    def _split(self, name: str, groups: ProcessGroupCollection | None) -> None:
        """Attention whose sequence is shared by the ranks of the context parallel group."""
        whole = groups.cp if groups is not None else parallel_state.get_context_parallel_group()
        levels = parallel_state.get_hierarchical_context_parallel_groups(check_initialized=False) or []
        limits.check_layer(
            name,
            whole.size(),
            [group.size() for group in levels] or None,
            self.num_attention_heads_per_partition,
            windowed=self.window is not None,
            dropout=self.attention_dropout.p,
        )
        if self.config.softmax_type != "vanilla":
            raise AscendPatchError(
                f"--softmax-type {self.config.softmax_type} was given with --context-parallel-size {whole.size()}, "
                "which takes vanilla only."
            )
        self.cp_comm_type = name
        if name == "p2p":
            self.split_attention = partial(ring_attention, group=whole)
        elif name == "a2a+p2p":
            ring = partial(ring_attention, group=levels[1])
            self.split_attention = partial(heads_attention, group=levels[0], attend=ring)
        elif name == "a2a":
            self.split_attention = partial(heads_attention, group=whole, window=self.window)
        else:
            self.split_attention = partial(gathered_attention, group=whole, window=self.window)

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
        if self.split_attention is not None:
            options = self._options_of_a_split_sequence(attention_mask, causal, packed_seq_params)
            return self.split_attention(query, key, value, **options)
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

    def _options_of_a_split_sequence(
        self, attention_mask: torch.Tensor | None, causal: bool, packed: PackedSeqParams | None
    ) -> dict[str, Any]:
        if attention_mask is not None and (self.uses_mask or not causal):
            raise AscendPatchError(
                "An attention mask of sequence x sequence cannot be honoured with --context-parallel-size above 1. Use "
                "--no-create-attention-mask-in-dataloader: causal attention needs none."
            )
        options: dict[str, Any] = {"scale": self.softmax_scale, "causal": causal}
        if packed is not None:
            limits.check_packed(self.cp_comm_type)
            if getattr(packed, "local_cp_size", None) is not None:
                raise AscendPatchError(
                    "--hybrid-context-parallel was given; groups that change from batch to batch are not supported. "
                    "Leave it out."
                )
            # Padding stands at the end of a sequence, where causal attention does not meet it.
            padded = packed.cu_seqlens_q_padded
            options["cu_seqlens"] = host_list(packed.cu_seqlens_q if padded is None else padded)
        return options

    def _with_dropout_state(self, function, *args, **kwargs) -> torch.Tensor:
        if kwargs["dropout_p"] == 0.0 or self.config.sequence_parallel:
            return function(*args, **kwargs)
        # Heads are split over tensor parallel ranks, so each rank draws from a state of its own.
        with get_cuda_rng_tracker().fork():
            return function(*args, **kwargs)


class CausalDotProductAttention(DotProductAttention):
    """Stands for ``TEDotProductAttention``: a causal layer ignores the mask, which then only repeats itself."""

    uses_mask = False
