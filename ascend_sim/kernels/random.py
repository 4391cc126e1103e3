"""Random numbers of kernels: a mask that two operators can agree on by a seed and an offset."""

import torch

_PHILOX_STEP = 12  # torch_npu asks its generator for 10 numbers a mask; generators count in fours


def reserve() -> tuple[int, int]:
    """Seed and offset for one random operator, from the current device's generator, which moves on.

    Without torch_npu (kernels called on plain tensors) they come from PyTorch's default generator.
    """
    npu = getattr(torch, "npu", None)
    if npu is None:
        return int(torch.randint(1, 2**62, ())), 0
    generator = npu.default_generators[npu.current_device()]
    seed, offset = generator.initial_seed(), generator.get_offset()
    generator.set_offset(offset + _PHILOX_STEP)
    return seed, offset


def keep_mask(shape: tuple[int, ...], keep_prob: float, generator: torch.Generator) -> torch.Tensor:
    """Bool tensor, True with probability `keep_prob`."""
    return torch.empty(shape, dtype=torch.bool).bernoulli_(keep_prob, generator=generator)


def generator(seed: int, offset: int) -> torch.Generator:
    """The generator that stands for the device's Philox stream at (seed, offset); not its numbers."""
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + offset * 0xC2B2AE3D27D4EB4F) % 2**63)
