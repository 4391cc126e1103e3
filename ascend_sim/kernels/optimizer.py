"""One step of AdamW over a flat buffer: npu_apply_adam_w."""

from typing import NoReturn

import torch

from ascend_sim.errors import NotModelled, require
from ascend_sim.kernels.checks import require_dtype, require_same_dtype, require_shape, wide
from ascend_sim.kernels.registry import kernel

_SOURCE = (
    "Ascend/op-plugin 26.0.0 op_plugin/ops/opapi/ApplyAdamWKernelNpuOpApi.cpp and "
    "test/test_custom_ops/test_npu_apply_adam_w.py (formulas)"
)


@kernel(
    "npu_apply_adam_w.out",
    source=_SOURCE,
    assumes=(
        "var, m, v and grad share one of float16, bfloat16, float32, and the step is computed in float32.",
        "Factors such as 1 - beta2 are formed in float64 before they are rounded to float32.",
    ),
)
def npu_apply_adam_w_out(
    beta1_power: float,
    beta2_power: float,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    grad: torch.Tensor,
    max_grad_norm: torch.Tensor | None,
    amsgrad: bool | None,
    maximize: bool | None,
    out: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decoupled weight decay, then Adam, in place.

    Args:
        beta1_power: beta1 to the power of the steps taken *before* this one: the operator multiplies by beta1 itself.
        beta2_power: Likewise for beta2.
        lr: Learning rate.
        weight_decay: The parameter shrinks by ``1 - lr * weight_decay``.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        epsilon: Added to the root of the corrected second moment.
        grad: Gradient.
        max_grad_norm: Running maximum of the second moment, in place; needed with `amsgrad`.
        amsgrad: Use the maximum instead of the second moment.
        maximize: Ascend instead.
        out: Parameter, first and second moment, updated in place.

    Returns:
        The three tensors of `out`.
    """
    require(len(out) == 3, f"out has {len(out)} tensors, needed: var, m, v")
    var, m, v = out
    require(not amsgrad or max_grad_norm is not None, "max_grad_norm is None, with amsgrad it is needed")
    maximum = max_grad_norm if amsgrad else None
    require_dtype("var", var)
    require_same_dtype(var=var, m=m, v=v, grad=grad, max_grad_norm=maximum)
    for name, tensor in (("m", m), ("v", v), ("grad", grad), ("max_grad_norm", maximum)):
        if tensor is not None:
            require_shape(name, tensor, tuple(var.shape))
    gradient = -wide(grad) if maximize else wide(grad)
    first = wide(m).mul(beta1).add_(gradient, alpha=1 - beta1)
    second = wide(v).mul(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = second
    if maximum is not None:
        denominator = torch.maximum(wide(maximum), second)
        maximum.copy_(denominator)
    root = (denominator / (1 - beta2_power * beta2)).sqrt_().add_(epsilon)
    var.copy_(wide(var).mul(1 - lr * weight_decay).addcdiv_(first, root, value=-lr / (1 - beta1_power * beta1)))
    m.copy_(first)
    v.copy_(second)
    return var, m, v


@kernel("npu_apply_adam_w", source=_SOURCE)
def npu_apply_adam_w(
    beta1_power: float,
    beta2_power: float,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    grad: torch.Tensor,
    max_grad_norm: torch.Tensor | None,
    amsgrad: bool | None,
    maximize: bool | None,
) -> NoReturn:
    """torch_npu declares this form and refuses every call of it."""
    raise NotModelled("torch_npu itself implements only the form with out=(var, m, v)")
