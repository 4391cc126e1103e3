"""Digests of tensors: computed where the tensor is, copied to the host all at once.

The hash is a sum of products with fixed odd numbers, modulo 2**64: integer arithmetic, which every device does in the
same way whatever the order of the sum.
"""

from functools import cache

import numpy
import torch

from ascend_patch.trace.store import Digest

BLOCK = 2**20
"""Elements at a time, so that what a digest needs for itself stays at some 32 MB."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MIX = -7046029254386353131  # 0x9E3779B97F4A7C15: odd, its bits without a pattern


class Digests:
    """Digests that are still on their devices."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._places: dict[torch.device, list[int]] = {}
        self._numbers: dict[torch.device, list[torch.Tensor]] = {}
        self._hashes: dict[torch.device, list[torch.Tensor]] = {}

    def add(self, tensor: torch.Tensor) -> int:
        """Digest ``tensor`` (any shape, any real dtype) without waiting for it; returns its number."""
        numbers, hashed = measure(tensor)
        number, device = len(self._counts), tensor.device
        self._counts.append(tensor.numel())
        self._places.setdefault(device, []).append(number)
        self._numbers.setdefault(device, []).append(numbers)
        self._hashes.setdefault(device, []).append(hashed)
        return number

    def to_host(self) -> list[Digest]:
        """All, in the order in which they were added: two copies from each device."""
        digests: list[Digest] = [Digest(0, 0.0, 0.0, 0.0)] * len(self._counts)
        for device, places in self._places.items():
            numbers = torch.stack(self._numbers[device]).tolist()
            hashes = torch.stack(self._hashes[device]).tolist()
            for place, (total, square, largest), hashed in zip(places, numbers, hashes, strict=True):
                digests[place] = Digest(self._counts[place], total, square, largest, f"{hashed % 2**64:016x}")
        return digests


@torch.no_grad()
def measure(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum, sum of squares and largest absolute value, ``[3]``, and the hash, ``[]`` int64, on the tensor's device."""
    flat = tensor.detach().contiguous().view(-1)
    # Ascend's vector cores have no float64.
    numbers = torch.zeros(3, dtype=torch.float32 if flat.device.type == "npu" else torch.float64, device=flat.device)
    hashed = torch.zeros((), dtype=torch.int64, device=flat.device)
    weights = _weights(flat.device)
    for part in flat.split(BLOCK) if flat.numel() else ():
        values = part.to(numbers.dtype)
        numbers[0] += values.sum()
        numbers[1] += (values * values).sum()
        numbers[2] = torch.maximum(numbers[2], values.abs().max())
        bits = part.view(_INTEGERS[part.element_size()]).to(torch.int64)
        hashed = hashed * _MIX + (bits * weights[: bits.numel()]).sum()
    return numbers, hashed


@cache
def _weights(device: torch.device) -> torch.Tensor:
    """``[BLOCK]`` odd int64, each bit as good as random: splitmix64 of 1, 2, …"""
    x = numpy.arange(1, BLOCK + 1, dtype=numpy.uint64) * numpy.uint64(_MIX % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> numpy.uint64(shift))) * numpy.uint64(factor)
    return torch.from_numpy((x | numpy.uint64(1)).view(numpy.int64)).to(device)
