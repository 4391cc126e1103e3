"""SwiGLU with float32 arithmetic on blocks of rows, forward and backward.

Multiplying a bfloat16 activation by float32 probabilities, as the plain formulation does, makes float32 copies of the
whole activation and is far slower than the activation itself. The blocks here are widened, finished and rounded once
while they are in the cache. Only the inputs are kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascend_patch.ops.blocks import row_blocks
from ascend_patch.ops.function import apply
from ascend_patch.ops.numerics import accumulation_dtype


def swiglu(x: Tensor, probs: Tensor | None = None) -> Tensor:
    """See :func:`ascend_patch.ops.swiglu.swiglu`."""
    rows, width = x.shape[:-1].numel(), x.shape[-1]
    y = apply(_SwiGLU, x.reshape(rows, width), probs.reshape(rows) if probs is not None else None)
    return y.view(*x.shape[:-1], width // 2)


class _SwiGLU(torch.autograd.Function):
    """Over ``[rows, 2F]`` and ``[rows]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probs: Tensor | None) -> Tensor:
        dtype = accumulation_dtype(x.dtype)
        y = x.new_empty(x.shape[0], x.shape[1] // 2)
        for block in row_blocks(x):
            gate, up = x[block].to(dtype).chunk(2, dim=-1)
            product = torch.nn.functional.silu(gate).mul_(up)
            if probs is not None:
                product.mul_(probs[block].to(dtype).unsqueeze(-1))
            y[block] = product
        ctx.save_for_backward(x, probs)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor | None]:
        x, probs = ctx.saved_tensors
        dtype = accumulation_dtype(x.dtype)
        half = x.shape[1] // 2
        grad_x = torch.empty_like(x)
        grad_probs = torch.empty_like(probs) if probs is not None else None
        for block in row_blocks(x):
            gate, up = x[block].to(dtype).chunk(2, dim=-1)
            grad = grad_y[block].to(dtype)
            grad_up = grad * torch.nn.functional.silu(gate)
            grad_silu = grad * up
            if grad_probs is not None:
                grad_probs[block] = (grad_up * up).sum(dim=-1)
                weight = probs[block].to(dtype).unsqueeze(-1)
                grad_up.mul_(weight)
                grad_silu.mul_(weight)
            grad_x[block, :half] = torch.ops.aten.silu_backward(grad_silu, gate)
            grad_x[block, half:] = grad_up
        return grad_x, grad_probs
