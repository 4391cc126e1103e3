"""Root mean square normalisation: npu_rms_norm with its gradient, npu_add_rms_norm."""

import torch

from ascend_sim.errors import require
from ascend_sim.kernels.checks import require_dtype, require_same_dtype, require_shape, wide
from ascend_sim.kernels.registry import kernel

_DOCS = "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu"


@kernel(
    "npu_rms_norm",
    source=f"{_DOCS}/（beta）torch_npu-npu_rms_norm.md (Ascend/op-plugin 26.0.0)",
    assumes=(
        "With a float32 gamma and a 16-bit input the product is rounded once, to the input's data type.",
        "One dimension is allowed, as in CANN's page; torch_npu's page says 2 to 8 but shows a gamma of one.",
    ),
)
def npu_rms_norm(input: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``input / sqrt(mean(input ** 2) + epsilon) * gamma`` over the trailing dimensions that `gamma` has.

    Args:
        input: ``[*, *gamma.shape]``, float16, bfloat16 or float32.
        gamma: The input's data type, or float32 for a 16-bit input.
        epsilon: Added to the mean square.

    Returns:
        The normalised tensor, and the reciprocal root mean square in float32, ``[*, 1, …]``.
    """
    _check(input, gamma)
    values = wide(input)
    rstd = _rstd(values, gamma, epsilon)
    return (values * rstd * wide(gamma)).to(input.dtype), rstd


@kernel(
    "npu_rms_norm_backward",
    source="https://www.hiascend.com/document/detail/zh/CANNCommunityEdition/83RC1/API/aolapi/context/"
    "aclnnRmsNormGrad.md; gradient of gamma in float32: Ascend/op-plugin 26.0.0 "
    "op_plugin/ops/opapi/RmsNormBackwardKernelOpApi.cpp",
)
def npu_rms_norm_backward(
    dy: torch.Tensor, input: torch.Tensor, gamma: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of input (its data type) and gamma (float32)."""
    _check(input, gamma)
    require_same_dtype(dy=dy, input=input)
    require_shape("dy", dy, tuple(input.shape))
    leading = tuple(range(input.dim() - gamma.dim()))
    trailing = tuple(range(input.dim() - gamma.dim(), input.dim()))
    gradient, scaled = wide(dy), wide(input) * rstd
    inner = gradient * wide(gamma)
    grad_input = rstd * (inner - scaled * (inner * scaled).mean(trailing, keepdim=True))
    grad_gamma = gradient * scaled
    return grad_input.to(input.dtype), (grad_gamma.sum(leading) if leading else grad_gamma).float()


@kernel(
    "npu_add_rms_norm",
    source=f"{_DOCS}/torch_npu-npu_add_rms_norm.md (Ascend/op-plugin 26.0.0); rounding: add_rms_norm.h in "
    "gitcode.com/cann/ops-nn, norm/add_rms_norm/op_kernel",
)
def npu_add_rms_norm(
    x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """RMS norm of ``x1 + x2``: normalised tensor, reciprocal root mean square (float32), sum.

    All three inputs share one data type, ``x1`` and ``x2`` one shape, and none is empty. torch_npu has no gradient
    for this operator. The normalised value is rounded to the data type before it is multiplied by gamma; of bfloat16
    inputs the unrounded sum is normalised.
    """
    _check(x1, gamma)
    require_same_dtype(x1=x1, x2=x2, gamma=gamma)
    require_shape("x2", x2, tuple(x1.shape))
    require(x1.numel() > 0, f"x1 is empty {tuple(x1.shape)}, this operator takes no empty tensor")
    total = x1 + x2
    values = wide(x1) + wide(x2) if x1.dtype == torch.bfloat16 else wide(total)
    rstd = _rstd(values, gamma, epsilon)
    normalised = (values * rstd).to(x1.dtype)
    return (wide(normalised) * wide(gamma)).to(x1.dtype), rstd, total


def _check(input: torch.Tensor, gamma: torch.Tensor) -> None:
    require_dtype("input", input)
    allowed = (input.dtype,) if input.dtype == torch.float32 else (input.dtype, torch.float32)
    require_dtype("gamma", gamma, allowed)
    require(1 <= input.dim() <= 8, f"input has {input.dim()} dimensions, allowed: 1 to 8")
    require(
        0 < gamma.dim() <= input.dim() and gamma.shape == input.shape[input.dim() - gamma.dim() :],
        f"gamma has shape {tuple(gamma.shape)}, needed: trailing dimensions of the input's {tuple(input.shape)}",
    )


def _rstd(values: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> torch.Tensor:
    trailing = tuple(range(values.dim() - gamma.dim(), values.dim()))
    return torch.rsqrt(values.square().mean(trailing, keepdim=True) + epsilon)
