"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) as TransformerEngine's fused kernels compute it.

Megatron calls those kernels ``fused_apply_rotary_pos_emb`` and ``fused_apply_rotary_pos_emb_thd``. Unlike
Megatron's unfused code they keep cosine and sine in float32 and round only the result; the npu variant rounds these
as well.
"""

from torch import Tensor

from ascend_patch.ops.registry import run


def apply_rotary(t: Tensor, freqs: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate the leading ``r`` features of every head by the angles of its position.

    Args:
        t: ``[s, b, h, d]``, floating point, any strides.
        freqs: ``[s', 1, 1, r]`` angles in radians, ``s' >= s``, ``r <= d`` and even; each angle stands twice,
            as Megatron's ``RotaryEmbedding`` makes them: in halves, or pairwise if ``interleaved``.
        interleaved: rotate the pairs (0, 1), (2, 3), ... instead of (0, r/2), (1, r/2 + 1), ...

    Returns:
        ``[s, b, h, d]`` in the dtype of ``t``; the features from ``r`` on are copied.

    The gradient with respect to ``t`` is deterministic; ``freqs`` gets none. Against a float64 evaluation the
    relative error stays below 1e-5 (float32) and 1e-2 (bfloat16).

    Raises:
        ValueError: the shapes do not fit.
    """
    if t.dim() != 4:
        raise ValueError(f"apply_rotary: t must be [s, b, h, d], found shape {tuple(t.shape)}.")
    _check_freqs("apply_rotary", freqs, head_dim=t.shape[-1], positions=t.shape[0])
    return run("rotary", "apply_rotary", t, freqs, interleaved)


def apply_rotary_thd(
    t: Tensor,
    cu_seqlens: Tensor,
    freqs: Tensor,
    cp_size: int = 1,
    cp_rank: int = 0,
    interleaved: bool = False,
) -> Tensor:
    """:func:`apply_rotary` for packed sequences; positions start at 0 in each of them.

    Args:
        t: ``[T, h, d]``, the sequences one after the other, or this context parallel rank's share of each.
        cu_seqlens: ``[n + 1]`` integers, the offsets of the whole sequences, from 0 up to ``T * cp_size``.
        freqs: as for :func:`apply_rotary`, at least as many positions as the longest whole sequence has.
        cp_size, cp_rank: context parallelism cuts every sequence into ``2 * cp_size`` pieces and gives rank
            ``i`` the pieces ``i`` and ``2 * cp_size - 1 - i``. Each sequence length must be divisible
            accordingly.
        interleaved: as for :func:`apply_rotary`.

    Returns:
        ``[T, h, d]`` in the dtype of ``t``.

    Raises:
        ValueError: the shapes do not fit.
    """
    if t.dim() != 3:
        raise ValueError(f"apply_rotary_thd: t must be [T, h, d], found shape {tuple(t.shape)}.")
    if not 0 <= cp_rank < cp_size:
        raise ValueError(f"apply_rotary_thd: cp_rank must be in [0, {cp_size}), found {cp_rank}.")
    _check_freqs("apply_rotary_thd", freqs, head_dim=t.shape[-1], positions=0)
    return run("rotary", "apply_rotary_thd", t, cu_seqlens, freqs, cp_size, cp_rank, interleaved)


def _check_freqs(function: str, freqs: Tensor, head_dim: int, positions: int) -> None:
    r = freqs.shape[-1]
    if freqs.dim() != 4 or freqs.shape[1:3] != (1, 1) or r % 2 or r > head_dim or freqs.shape[0] < positions:
        raise ValueError(
            f"{function}: freqs has shape {tuple(freqs.shape)}; allowed is [s, 1, 1, r] with s >= {positions} and "
            f"r even and at most {head_dim}. Angles that differ within a batch (mRoPE) need the unfused path."
        )
