"""Which position each token of a packed, context parallel batch has."""

import torch
from torch import Tensor


def packed_positions(tokens: int, cu_seqlens: Tensor, cp_size: int, cp_rank: int, available: int) -> Tensor:
    """Position of every local token in its own sequence, int64 ``[tokens]`` on the CPU.

    Args:
        tokens: how many tokens this rank has.
        cu_seqlens, cp_size, cp_rank: as for :func:`ascend_patch.ops.rotary.apply_rotary_thd`.
        available: how many positions there are angles for.

    Raises:
        ValueError: the sequences do not make up the tokens, one cannot be cut into ``2 * cp_size`` equal pieces, or one
            is longer than ``available``.
    """
    lengths = cu_seqlens.diff().tolist()
    if sum(lengths) != tokens * cp_size:
        raise ValueError(
            f"apply_rotary_thd: the sequences of cu_seqlens add up to {sum(lengths)} tokens, but t has {tokens} "
            f"tokens on each of {cp_size} context parallel ranks; the numbers must agree."
        )
    if max(lengths, default=0) > available:
        raise ValueError(
            f"apply_rotary_thd: a sequence of {max(lengths)} tokens needs angles for {max(lengths)} positions, freqs "
            f"has {available}."
        )
    if cp_size == 1:
        return torch.cat([torch.arange(0), *(torch.arange(length) for length in lengths)])
    pieces = [torch.arange(0)]
    for length in lengths:
        piece, rest = divmod(length, 2 * cp_size)
        if rest:
            raise ValueError(
                f"apply_rotary_thd: a sequence of {length} tokens cannot be shared by {cp_size} context parallel "
                f"ranks; its length must be a multiple of {2 * cp_size}. Pad the sequences when packing them."
            )
        for index in (cp_rank, 2 * cp_size - 1 - cp_rank):
            pieces.append(torch.arange(index * piece, (index + 1) * piece))
    return torch.cat(pieces)
