"""Rotary position embedding behind upstream's default ``apply_rope_fusion``."""

from functools import partial

from ascend_patch.engine.patch import Patch
from ascend_patch.features.conditions import without_transformer_engine


def fused_apply_rotary_pos_emb(t, freqs, transpose_output_memory=False, interleaved=False):
    """TransformerEngine's function of that name: ``t [s, b, h, d]``, ``freqs [s, 1, 1, r]`` -> like ``t``."""
    from ascend_patch.ops.rotary import apply_rotary

    return apply_rotary(t, freqs, interleaved=interleaved)


def fused_apply_rotary_pos_emb_thd(t, cu_seqlens, freqs, cp_size=1, cp_rank=0, interleaved=False):
    """The same for packed sequences: ``t [T, h, d]``, each sequence starts at position 0."""
    from ascend_patch.ops.rotary import apply_rotary_thd

    return apply_rotary_thd(t, cu_seqlens, freqs, cp_size=cp_size, cp_rank=cp_rank, interleaved=interleaved)


_MODULE = "megatron.core.models.common.embeddings.rope_utils"
_patch = partial(
    Patch,
    id="rope.fused",
    mode="replace",
    upstream=">=0.16.1,<0.20",
    reason=(
        "apply_rope_fusion is upstream's default and a ValueError without TransformerEngine, which provides these two "
        "functions."
    ),
    remove_when="upstream falls back to its unfused function by itself and that one is fused by the compiler.",
    when=without_transformer_engine,
    consumers=(f"{_MODULE}:apply_rotary_pos_emb",),
)

PATCHES = (
    _patch(
        target=f"{_MODULE}:fused_apply_rotary_pos_emb", impl="ascend_patch.features.rope:fused_apply_rotary_pos_emb"
    ),
    _patch(
        target=f"{_MODULE}:fused_apply_rotary_pos_emb_thd",
        impl="ascend_patch.features.rope:fused_apply_rotary_pos_emb_thd",
    ),
)
