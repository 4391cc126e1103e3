"""Several conversations in one sample: which go together."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put ``lengths`` into as few bins of ``capacity`` as best fit decreasing finds (at most 11/9 of the fewest).

    Args:
        lengths: each from 0 to ``capacity``.

    Returns:
        The indices in each bin, ascending, and the bins by their first index: the same for the same lengths.

    Raises:
        ValueError: one is longer than a bin.
    """
    bins: list[list[int]] = []
    space: list[tuple[int, int]] = []  # what is left in a bin and its number, ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"pack: length {length} at {index} is more than the capacity, {capacity}.")
        at = bisect_left(space, (length, -1))
        if at < len(space):
            left, number = space.pop(at)
        else:
            left, number = capacity, len(bins)
            bins.append([])
        bins[number].append(index)
        insort(space, (left - length, number))
    return sorted(sorted(one) for one in bins)
