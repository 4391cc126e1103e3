"""Gated activations: npu_swiglu with its gradient."""

import torch
from torch.nn.functional import silu

from ascend_sim.errors import require
from ascend_sim.kernels.checks import require_dtype, require_same_dtype, require_shape, wide
from ascend_sim.kernels.registry import kernel

_SOURCE = (
    "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu/（beta）torch_npu-npu_swiglu.md "
    "(Ascend/op-plugin 26.0.0)"
)


@kernel(
    "npu_swiglu",
    source=_SOURCE,
    assumes=(
        "silu and product are computed in float32 and rounded once.",
        "Empty tensors are refused, as torch_npu's page says; CANN's page of aclnnSwiGlu allows them.",
    ),
)
def npu_swiglu(input: torch.Tensor, dim: int) -> torch.Tensor:
    """``silu(a) * b`` of the halves `a`, `b` of `input` along `dim`.

    Args:
        input: float16, bfloat16 or float32, 1 to 8 dimensions, contiguous, not empty, even along `dim`.
        dim: Dimension to halve.

    Returns:
        Tensor of the input's data type, half as long along `dim`.
    """
    _check(input, dim)
    gate, value = wide(input).chunk(2, dim)
    return (silu(gate) * value).to(input.dtype)


@kernel("npu_swiglu_backward", source=_SOURCE + "; the derivative of its formula")
def npu_swiglu_backward(grad_output: torch.Tensor, input: torch.Tensor, dim: int) -> torch.Tensor:
    """Gradient of the input, in its data type and shape."""
    _check(input, dim)
    require_same_dtype(grad_output=grad_output, input=input)
    gate, value = wide(input).chunk(2, dim)
    require_shape("grad_output", grad_output, tuple(gate.shape))
    gradient, sigmoid = wide(grad_output), torch.sigmoid(gate)
    grad_gate = gradient * value * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat((grad_gate, gradient * gate * sigmoid), dim).to(input.dtype)


def _check(input: torch.Tensor, dim: int) -> None:
    require_dtype("input", input)
    require(1 <= input.dim() <= 8, f"input has {input.dim()} dimensions, allowed: 1 to 8")
    require(-input.dim() <= dim < input.dim(), f"dim is {dim}, allowed: {-input.dim()} to {input.dim() - 1}")
    require(input.shape[dim] % 2 == 0, f"input has size {input.shape[dim]} along dim {dim}, an even size is needed")
    require(input.numel() > 0, f"input is empty {tuple(input.shape)}, this operator takes no empty tensor")
    require(input.is_contiguous(), f"input has strides {input.stride()}, a contiguous tensor is needed")
