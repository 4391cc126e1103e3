"""Which keys a query may see."""

import torch
from torch import Tensor


def visible_range(sq: int, sk: int, causal: bool, window: tuple[int, int] | None) -> tuple[int, int]:
    """``(low, high)``, such that query ``i`` sees key ``j`` when ``low <= j - i <= high``.

    The last query is at the position of the last key; the arguments are those of
    :func:`ascend_patch.ops.attention.attention`.
    """
    left, right = window if window is not None else (-1, -1)
    if causal:
        right = 0
    offset = sk - sq
    low = offset - left if left >= 0 else -sq
    high = offset + right if right >= 0 else sk
    return low, high


def visible_keys(sq: int, sk: int, causal: bool, window: tuple[int, int] | None, device: torch.device) -> Tensor:
    """Bool ``[sq, sk]``, True where the query sees the key."""
    low, high = visible_range(sq, sk, causal, window)
    distance = torch.arange(sk, device=device) - torch.arange(sq, device=device).unsqueeze(-1)
    return (distance >= low) & (distance <= high)
