"""A rank's part of a packed sample."""

from collections.abc import Sequence
from typing import Any

from ascend_patch.context_parallel.layout import positions_of_rank

BY_POSITION = ("tokens", "labels", "loss_mask", "position_ids")


def part_of_packed_batch(batch: dict[str, Any], cu_seqlens: Sequence[int], ranks: int, rank: int) -> dict[str, Any]:
    """``batch`` with the positions of this rank.

    Args:
        batch: ``[1, t]`` under each name of :data:`BY_POSITION`, or None where a pipeline stage has no use for it; what
            has other names stays as it is.
        cu_seqlens: where the sequences begin and end, the whole of them.

    Returns:
        The same with ``[1, t / ranks]``.

    Raises:
        ValueError: the sequences do not make up the batch, or one is of a length that is not a multiple of
            ``2 * ranks``.
    """
    if ranks == 1:
        return batch
    positions = positions_of_rank(cu_seqlens, ranks, rank)
    part = dict(batch)
    for name in BY_POSITION:
        whole = batch.get(name)
        if whole is None:
            continue
        if whole.shape != (1, cu_seqlens[-1]):
            raise ValueError(
                f"{name} of a packed batch is of shape {tuple(whole.shape)}, but its sequences (cu_seqlens) end at "
                f"{cu_seqlens[-1]}: it must be [1, {cu_seqlens[-1]}]."
            )
        part[name] = whole.index_select(1, positions.to(whole.device))
    return part
