"""SwiGLU in plain PyTorch: the oracle for the other variants."""

import torch
from torch import Tensor

from ascend_patch.ops.numerics import accumulation_dtype


def swiglu(x: Tensor, probs: Tensor | None = None) -> Tensor:
    """See :func:`ascend_patch.ops.swiglu.swiglu`."""
    dtype = accumulation_dtype(x.dtype)
    gate, up = x.to(dtype).chunk(2, dim=-1)
    y = gate * torch.sigmoid(gate) * up
    if probs is not None:
        y = y * probs.to(dtype).unsqueeze(-1)
    return y.to(x.dtype)
