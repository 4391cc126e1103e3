"""Which position each token of a packed, context parallel batch has."""

import torch
from torch import Tensor


def packed_positions(cu_seqlens: Tensor, cp_size: int, cp_rank: int) -> Tensor:
    """Position of every local token in its own sequence, int64 ``[T]`` on the CPU.

    The arguments are those of :func:`ascend_patch.ops.rotary.apply_rotary_thd`.

    Raises:
        ValueError: a sequence cannot be cut into ``2 * cp_size`` equal pieces.
    """
    lengths = cu_seqlens.diff().tolist()
    if cp_size == 1:
        return torch.cat([torch.arange(length) for length in lengths] or [torch.arange(0)])
    pieces = []
    for length in lengths:
        piece, rest = divmod(length, 2 * cp_size)
        if rest:
            raise ValueError(
                f"apply_rotary_thd: a sequence of {length} tokens cannot be shared by {cp_size} context "
                f"parallel ranks; its length must be a multiple of {2 * cp_size}. Pad the sequences when "
                "packing them."
            )
        for index in (cp_rank, 2 * cp_size - 1 - cp_rank):
            pieces.append(torch.arange(index * piece, (index + 1) * piece))
    return torch.cat(pieces or [torch.arange(0)])
