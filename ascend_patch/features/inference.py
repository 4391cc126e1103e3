"""Upstream's dynamic inference engine without FlashAttention: its paged cache on operator ``paged_attention``.

The engine has three seams for the kernels that it needs: the attention over the paged cache, the kernel that writes to
it, and a check that FlashAttention is there. Scheduling, batching and memory stay upstream's.
"""

import importlib.util
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Environment, Patch


def without_flash_attention(environment: Environment) -> str | None:
    """Upstream's engine is complete where FlashAttention is installed (the reference chip)."""
    if importlib.util.find_spec("flash_attn") is not None:
        return "FlashAttention is installed and does this"
    return None


def without_triton_kernels(environment: Environment) -> str | None:
    """Upstream's Triton kernel writes the cache on cuda, and refuses tensors of other devices."""
    return "upstream's Triton kernel does this on cuda" if environment.device == "cuda" else None


class HostLengths:
    """The lengths of this step's requests as lists; read from the device once a step, not once a layer."""

    def __init__(self) -> None:
        self._lists: dict[int, list[int]] = {}

    def clear(self) -> None:
        """The next step begins: the same buffers hold other numbers."""
        self._lists.clear()

    def of(self, t: Any) -> list[int]:
        """``t.tolist()``; ``t`` is a view of one of the engine's buffers, which live as long as the engine."""
        key = t.data_ptr()
        if key not in self._lists:
            self._lists[key] = t.tolist()
        return self._lists[key]


_lengths = HostLengths()


def initialize_attention_state(original: Callable) -> Callable:
    """``DynamicInferenceContext.initialize_attention_state``, with which each step begins."""

    @wraps(original)
    def begin_step(self, *args, **kwargs):
        from megatron.core import parallel_state

        if parallel_state.get_context_parallel_world_size() > 1:
            raise AscendPatchError("Generation needs whole sequences; leave --context-parallel-size at 1.")
        _lengths.clear()
        return original(self, *args, **kwargs)

    return begin_step


def flash_decode_and_prefill(original: Callable) -> Callable:
    """``Attention.flash_decode_and_prefill`` on operator ``paged_attention``.

    ``q [t, 1, np, hn]``, ``k`` and ``v [blocks, block, ng, hn]`` -> ``[t, 1, np, hn]``.
    """

    @wraps(original)
    def attend(
        self,
        q,
        k,
        v,
        max_seqlen_q,
        max_seqlen_k,
        cu_seqlens_q,
        cu_seqlens_k,
        seqlens_k,
        block_table,
        is_decode_only,
        softmax_offset=None,
    ):
        from megatron.core.transformer.utils import is_layer_window_attention

        from ascend_patch.engine.errors import AscendPatchError
        from ascend_patch.ops.paged_attention import paged_attention

        if softmax_offset is not None or v is None:
            raise AscendPatchError(
                "Generation with attention sinks (--softmax-type) or latent attention needs FlashAttention, which is "
                "not installed; Mixtral and Mistral have neither."
            )
        config = self.config
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, self.layer_number)
        scale = getattr(self, "softmax_scale", None)
        return paged_attention(
            q.squeeze(1),
            k,
            v,
            block_table,
            _lengths.of(cu_seqlens_q),
            _lengths.of(seqlens_k),
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            window=config.window_size if windowed else None,
        ).unsqueeze(1)

    return attend


def is_fa_min_version(original: Callable) -> Callable:
    """Upstream's check before it calls ``flash_decode_and_prefill``, which needs no FlashAttention any more."""

    @wraps(original)
    def at_least(version: str, *args, **kwargs) -> bool:
        return True

    return at_least


def append_key_value_cache(
    layer_number: int,
    key,
    value,
    memory_buffer,
    padded_active_token_count: int,
    token_to_block_idx,
    token_to_local_position_within_kv_block,
) -> None:
    """``triton_append_key_value_cache``: write the step's keys and values ``[tokens, 1, ng, hn]`` to the cache.

    Args:
        layer_number: of the cache, from 0.
        memory_buffer: ``[2, layers, blocks, block, ng, hn]``.
        token_to_block_idx, token_to_local_position_within_kv_block: ``[tokens]``, where each token goes.
    """
    from ascend_patch.ops.paged_attention import store_keys_values

    tokens = slice(padded_active_token_count)
    slots = token_to_block_idx[tokens] * memory_buffer.shape[3] + token_to_local_position_within_kv_block[tokens]
    key_cache, value_cache = memory_buffer[:, layer_number]
    store_keys_values(key[tokens, 0], value[tokens, 0], key_cache, value_cache, slots)


_HERE = "ascend_patch.features.inference"
_CONTEXT = "megatron.core.inference.contexts.dynamic_context"
_attention = partial(
    Patch,
    id="inference.attention",
    mode="wrap",
    upstream=">=0.16.1,<0.20",
    reason="Upstream's dynamic inference engine attends over its paged cache with FlashAttention only.",
    remove_when="upstream's engine takes its attention over the paged cache from a spec provider.",
    when=without_flash_attention,
)

PATCHES = (
    _attention(
        target="megatron.core.transformer.attention:Attention.flash_decode_and_prefill",
        impl=f"{_HERE}:flash_decode_and_prefill",
        consumers=("megatron.core.transformer.attention:Attention.forward",),
    ),
    _attention(
        target="megatron.core.transformer.attention:is_fa_min_version",
        impl=f"{_HERE}:is_fa_min_version",
        consumers=("megatron.core.transformer.attention:Attention.forward",),
    ),
    _attention(
        target=f"{_CONTEXT}:DynamicInferenceContext.initialize_attention_state",
        impl=f"{_HERE}:initialize_attention_state",
    ),
    Patch(
        id="inference.cache",
        target=f"{_CONTEXT}:triton_append_key_value_cache",
        impl=f"{_HERE}:append_key_value_cache",
        mode="replace",
        upstream=">=0.16.1,<0.20",
        reason="Upstream's kernel that writes the paged cache is Triton's, and refuses what is not on a CUDA device.",
        remove_when="upstream's engine takes the kernel that writes its cache from a spec provider.",
        when=without_triton_kernels,
        consumers=(f"{_CONTEXT}:DynamicInferenceContext.append_key_value_cache",),
    ),
)
