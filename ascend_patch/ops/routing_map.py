"""What is known of a routing map ``[T, E]`` without asking the device.

An Ascend operator may want every token to have equally many experts, which the map's shape does not say and a look
at its values would cost a synchronisation. Whoever makes such a map says so on the tensor itself: every operation on
it (a slice, a mask, a gather) makes another tensor, of which nothing is known.
"""

from torch import Tensor

_ATTRIBUTE = "_ascend_patch_experts_per_token"


def set_experts_per_token(routing_map: Tensor, count: int) -> None:
    """Promise that every row of ``routing_map`` has exactly ``count`` True entries and stays as it is."""
    setattr(routing_map, _ATTRIBUTE, count)


def experts_per_token(routing_map: Tensor) -> int | None:
    """The number promised, or None."""
    return getattr(routing_map, _ATTRIBUTE, None)
