"""RMSNorm in plain PyTorch: the oracle for the other variants."""

import torch
from torch import Tensor

from ascend_patch.ops.numerics import accumulation_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See :func:`ascend_patch.ops.rms_norm.rms_norm`."""
    dtype = accumulation_dtype(x.dtype)
    wide = x.to(dtype)
    inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse_rms * weight.to(dtype)).to(x.dtype)
