"""Working through a large tensor in blocks of rows, so that wide temporaries stay in the cache."""

from collections.abc import Iterator

from torch import Tensor

ELEMENTS_ON_HOST = 2**19
"""Elements of a block: in float32, what the cache of a core holds."""
ELEMENTS_ON_DEVICE = 2**25
"""The same for accelerators: enough to keep one busy, little beside its memory."""


def row_blocks(t: Tensor) -> Iterator[slice]:
    """Slices of the first dimension of ``t`` that together cover it."""
    elements = ELEMENTS_ON_HOST if t.device.type == "cpu" else ELEMENTS_ON_DEVICE
    rows = t.shape[0]
    step = max(1, elements // max(1, t.numel() // max(1, rows)))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
