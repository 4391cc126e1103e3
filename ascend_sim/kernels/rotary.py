"""Rotary position embedding: npu_rotary_mul with its gradient."""

import torch

from ascend_sim.errors import require
from ascend_sim.kernels.checks import (
    require_choice,
    require_dim,
    require_dtype,
    require_same_dtype,
    require_shape,
    wide,
)
from ascend_sim.kernels.registry import kernel

_SOURCE = (
    "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu/torch_npu-npu_rotary_mul.md "
    "(Ascend/op-plugin 26.0.0)"
)

# Which of the three leading dimensions of a 4-D input the factors keep (1) and which they broadcast (0).
_FACTORS = {
    "half": {
        "11SD": (0, 0, 1),
        "B1SD": (1, 0, 1),
        "BNSD / BSND / SBND": (1, 1, 1),
        "1S1D": (0, 1, 0),
        "BS1D / SB1D": (1, 1, 0),
        "S11D": (1, 0, 0),
    },
    "interleave": {"11SD": (0, 0, 1), "1S1D": (0, 1, 0), "S11D": (1, 0, 0)},
}
_BATCHES_AND_HEADS = {(0, 0, 1): (0, 1), (0, 1, 0): (0, 2), (1, 0, 0): (1, 2)}


@kernel(
    "npu_rotary_mul",
    source=_SOURCE,
    assumes=(
        "The factors are rounded to the input's data type before use, as op-plugin's RotaryMulKernelNpuOpApi.cpp does.",
        "Both products and their sum are computed in float32 and rounded once.",
        "With jit_compile off; the limits of the compiled variant (head size 128) are not checked.",
    ),
)
def npu_rotary_mul(input: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor, rotary_mode: str) -> torch.Tensor:
    """``input * r1 + rotate(input) * r2``.

    `rotate` swaps the halves of the last dimension (``half``) or neighbouring pairs (``interleave``), with a minus
    sign on what moves to the front.

    Args:
        input: BNSD, BSND, SBND (4-D) or TND (3-D); head size even and less than 896.
        r1: Cosines within [-1, 1], broadcast over the heads (and, see the source, over batches).
        r2: Sines, shape of `r1`.
        rotary_mode: ``half`` or ``interleave``.

    Returns:
        Tensor of the input's shape and data type.
    """
    _check(input, r1, r2, rotary_mode)
    cos, sin = wide(r1.to(input.dtype)), wide(r2.to(input.dtype))
    values = wide(input)
    return (values * cos + _rotate(values, rotary_mode) * sin).to(input.dtype)


@kernel(
    "npu_rotary_mul_backward",
    source="aclnnRotaryPositionEmbeddingGrad.md in gitcode.com/cann/ops-transformer, posembedding/"
    "rotary_position_embedding_grad/docs; " + _SOURCE,
    assumes=(
        "Gradients of the factors are always computed; the device leaves them undefined when none is asked for, and "
        "limits batches times heads to 1,024 only when one is.",
    ),
)
def npu_rotary_mul_backward(
    grad: torch.Tensor, input: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor, rotary_mode: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of input, cosines and sines, all in the input's data type."""
    _check(input, r1, r2, rotary_mode)
    require_same_dtype(grad=grad, input=input)
    require_shape("grad", grad, tuple(input.shape))
    gradient, values = wide(grad), wide(input)
    cos, sin = wide(r1.to(input.dtype)), wide(r2.to(input.dtype))
    # The transpose of the rotation is its negative.
    grad_input = gradient * cos - _rotate(gradient * sin, rotary_mode)
    grad_cos = (gradient * values).sum_to_size(r1.shape)
    grad_sin = (gradient * _rotate(values, rotary_mode)).sum_to_size(r2.shape)
    return grad_input.to(input.dtype), grad_cos.to(input.dtype), grad_sin.to(input.dtype)


def _rotate(values: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == "half":
        first, second = values.chunk(2, -1)
        return torch.cat((-second, first), -1)
    return torch.stack((-values[..., 1::2], values[..., ::2]), -1).flatten(-2)


def _check(input: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor, mode: str) -> None:
    require_choice("rotary_mode", mode, ("half", "interleave"))
    for name, tensor in (("input", input), ("r1", r1), ("r2", r2)):
        require_dtype(name, tensor)
        require_dim(name, tensor, input.dim() if input.dim() in (3, 4) else 4)
    size = input.shape[-1]
    require(size % 2 == 0 and size < 896, f"head size is {size}, needed: even and less than 896")
    require_shape("r2", r2, tuple(r1.shape))
    require(r1.shape[-1] == size, f"r1 has size {r1.shape[-1]} in its last dimension, needed: the head size {size}")
    for name, tensor in (("r1", r1), ("r2", r2)):
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        require(largest <= 1.0, f"{name} reaches {largest}, allowed: -1 to 1")
    if input.dim() == 3:
        tokens, heads = input.shape[:2]
        allowed = ((tokens, 1, size), (tokens, heads, size)) if mode == "half" else ((tokens, 1, size),)
        require_shape("r1", r1, *allowed)
        return
    require_shape("r1", r1, *(_factor_shape(input, kept) for kept in _FACTORS[mode].values()))
    for kept, (batch, head) in _BATCHES_AND_HEADS.items():
        if tuple(r1.shape) == _factor_shape(input, kept):
            batches, heads = input.shape[batch], input.shape[head]
            within = batches < 1000 and heads < 1000 if mode == "half" else batches * heads < 1000
            rule = "each less than 1000" if mode == "half" else "a product less than 1000"
            require(within, f"{batches} batches and {heads} heads, allowed in mode {mode}: {rule}")
            return


def _factor_shape(input: torch.Tensor, kept: tuple[int, int, int]) -> tuple[int, ...]:
    leading = tuple(size if keep else 1 for size, keep in zip(input.shape[:3], kept, strict=True))
    return (*leading, input.shape[3])
