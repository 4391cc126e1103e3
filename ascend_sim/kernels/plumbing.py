"""Operators that torch_npu puts under ordinary PyTorch calls: casts, matrix products, dropout."""

import torch

from ascend_sim.errors import NotModelled, require
from ascend_sim.kernels import random
from ascend_sim.kernels.checks import require_dtype, wide
from ascend_sim.kernels.registry import kernel

_DOCS = "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu"
_DERIVATIVES = "Ascend/op-plugin 26.0.0 op_plugin/config/derivatives.yaml"
_PLAIN_FORMATS = {-1: "UNDEFINED", 0: "NCHW", 2: "ND", 30: "NCDHW"}


@kernel(
    "_npu_format_cast",
    source=f"{_DOCS}/（beta）torch_npu-npu_format_cast.md",
    assumes=("Formats that order the elements as strides do (ND, NCHW, NCDHW) change nothing; others are refused.",),
)
def npu_format_cast(input: torch.Tensor, acl_format: int) -> torch.Tensor:
    """A copy in the given format."""
    if acl_format not in _PLAIN_FORMATS:
        raise NotModelled(f"acl_format={acl_format}: formats other than {_PLAIN_FORMATS} are not modelled")
    return input.clone()


@kernel(
    "_npu_dtype_cast",
    source=f"Ascend/op-plugin 26.0.0 op_plugin/config/op_plugin_functions.yaml; {_DERIVATIVES}",
)
def npu_dtype_cast(input: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in another data type."""
    return input.to(dtype)


@kernel("_npu_dtype_cast_backward", source=_DERIVATIVES)
def npu_dtype_cast_backward(grad: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The gradient in the data type of the input."""
    return grad.to(dtype)


@kernel(
    "aten::matmul_backward",
    source="the derivative of torch.matmul; called by torch_npu's autograd, Ascend/op-plugin 26.0.0 "
    "op_plugin/ops/opapi/MatmulBackwardKernelNpuOpApi.cpp",
)
def matmul_backward(
    grad: torch.Tensor, self: torch.Tensor, other: torch.Tensor, mask: list[bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of both factors of torch.matmul; None where `mask` is False."""
    left = self.unsqueeze(0) if self.dim() == 1 else self
    right = other.unsqueeze(1) if other.dim() == 1 else other
    gradient = grad.unsqueeze(-1) if other.dim() == 1 else grad
    gradient = gradient.unsqueeze(-2) if self.dim() == 1 else gradient
    grad_self = grad_other = None
    if mask[0]:
        grad_self = (gradient @ right.mT).sum_to_size(left.shape).reshape(self.shape)
    if mask[1]:
        if right.dim() == 2 and left.dim() > 2:
            grad_other = left.flatten(0, -2).mT @ gradient.flatten(0, -2)
        else:
            grad_other = (left.mT @ gradient).sum_to_size(right.shape)
        grad_other = grad_other.reshape(other.shape)
    return grad_self, grad_other


@kernel(
    "npu_gather_backward",
    source=f"the derivative of torch.gather; called by torch_npu's autograd, {_DERIVATIVES}",
)
def npu_gather_backward(
    grad: torch.Tensor, self_size: list[int], dim: int, index: torch.Tensor, sparse_grad: bool
) -> torch.Tensor:
    """Gradient of the tensor that was gathered from, of size `self_size`: the sum over the index's repetitions."""
    if sparse_grad:
        raise NotModelled("sparse_grad=True is not modelled")
    return wide(grad).new_zeros(self_size).scatter_add_(dim, index, wide(grad)).to(grad.dtype)


@kernel("npu_linear", source="Ascend/op-plugin 26.0.0 op_plugin/ops/aclops/LinearKernelNpu.cpp")
def npu_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``input @ weight.T + bias``."""
    require(weight.dim() == 2, f"weight has {weight.dim()} dimensions, needed: 2")
    return torch.nn.functional.linear(input, weight, bias)


@kernel("npu_linear_backward", source=_DERIVATIVES)
def npu_linear_backward(
    grad: torch.Tensor, input: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of input and weight."""
    return grad @ weight, grad.flatten(0, -2).mT @ input.flatten(0, -2)


@kernel(
    "_npu_dropout",
    source=f"Ascend/op-plugin 26.0.0 op_plugin/ops/opapi/DropoutKernelNpuOpApi.cpp; {_DERIVATIVES}",
    assumes=("The mask is opaque to callers; here it holds a byte an element instead of a bit.",),
)
def npu_dropout(input: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero each element with probability `p` and scale the others by ``1 / (1 - p)``; result and mask."""
    require(0 <= p <= 1, f"p is {p}, allowed: 0 to 1")
    kept = random.keep_mask(tuple(input.shape), 1 - p, random.generator(*random.reserve()))
    return _drop(input, kept, p), kept.to(torch.uint8)


@kernel("npu_dropout_backward", source=_DERIVATIVES)
def npu_dropout_backward(grad_output: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """Gradient of the input, with the mask of the forward operator."""
    require_dtype("mask", mask, (torch.uint8,))
    return _drop(grad_output, mask.bool(), p)


def _drop(values: torch.Tensor, kept: torch.Tensor, p: float) -> torch.Tensor:
    if p == 1:
        return torch.zeros_like(values)
    return (wide(values) * kept / (1 - p)).to(values.dtype)
