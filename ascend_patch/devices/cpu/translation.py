"""Which device arguments mean CUDA, and what they become on the host."""

from typing import Any

import torch

HOST = torch.device("cpu")


def names_cuda(device: Any) -> bool:
    """True for ``"cuda"``, ``"cuda:1"``, ``torch.device("cuda", 1)`` and ``1``.

    Upstream passes all four; the integer comes from ``device=torch.cuda.current_device()``.
    """
    kind = type(device)  # exact types: this runs at every Tensor.to, and bool (an int) must not count
    if kind is torch.device:
        return device.type == "cuda"
    if kind is str:
        return device == "cuda" or device.startswith("cuda:")
    return kind is int


def to_host(device: Any) -> Any:
    """The CPU for a CUDA device; anything else, also None and ``"meta"``, unchanged."""
    return HOST if names_cuda(device) else device
