"""Cross entropy: npu_cross_entropy_loss with its gradient, and the gradient of torch_npu's binary cross entropy."""

import torch

from ascend_sim.errors import require
from ascend_sim.kernels.checks import (
    require_choice,
    require_dim,
    require_dtype,
    require_indices,
    require_shape,
    wide,
)
from ascend_sim.kernels.registry import kernel

_SOURCE = (
    "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu/"
    "torch_npu-npu_cross_entropy_loss.md; label smoothing: test/test_custom_ops/test_npu_cross_entropy_loss.py "
    "(Ascend/op-plugin 26.0.0)"
)
_MOST_ROWS = 200_000


@kernel(
    "npu_cross_entropy_loss",
    source=_SOURCE,
    assumes=(
        "A negative ignore_index ignores nothing, so every target must be a class; PyTorch's -100 is not special.",
        "Without a counted row the mean is not a number, as in PyTorch.",
    ),
)
def npu_cross_entropy_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross entropy of logits and class indices, with the log probabilities for the gradient.

    Args:
        input: Logits ``[rows, classes]``, float16, bfloat16 or float32, at most 200,000 rows.
        target: ``[rows]``, int64, within the classes.
        weight: One a class, float32.
        reduction: ``mean``, ``sum`` or ``none``.
        ignore_index: Class whose rows do not count; negative: none.
        label_smoothing: In [0, 1).

    Returns:
        Loss (``[1]``, or ``[rows]`` for ``none``), log probabilities ``[rows, classes]``, both in the input's data
        type, and two empty tensors (the z loss is not supported by the operator).
    """
    _check(input, target, weight, reduction, label_smoothing)
    classes = input.shape[1]
    require(ignore_index < classes, f"ignore_index is {ignore_index}, allowed: less than {classes} classes")
    log_prob = torch.log_softmax(wide(input), -1)
    per_row, counted, classes_weight = _row_weights(target, weight, ignore_index, classes)
    loss = -log_prob.gather(1, target.unsqueeze(1)).squeeze(1) * per_row
    if label_smoothing:
        smooth = -(log_prob * classes_weight).sum(-1) * counted
        loss = (1 - label_smoothing) * loss + label_smoothing / classes * smooth
    if reduction != "none":
        loss = loss.sum().reshape(1)
    if reduction == "mean":
        loss = loss / per_row.sum()
    empty = input.new_empty(0)
    return loss.to(input.dtype), log_prob.to(input.dtype), empty, empty.clone()


@kernel(
    "npu_cross_entropy_loss_backward",
    source=_SOURCE,
    assumes=("The gradient is formed from the log probabilities as the forward pass rounded them.",),
    ignores=("grad_zloss", "lse_for_zloss"),
)
def npu_cross_entropy_loss_backward(
    grad_loss: torch.Tensor,
    log_prob: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> torch.Tensor:
    """Gradient of the logits, in the data type of `grad_loss`.

    With gradients the operator takes no label smoothing, and for ``mean`` neither `weight` nor `ignore_index`.
    """
    _check(log_prob, target, weight, reduction, label_smoothing)
    require(label_smoothing == 0, f"label_smoothing is {label_smoothing}, allowed where a gradient is needed: 0")
    if reduction == "mean":
        require(weight is None, "weight is given, not allowed for reduction 'mean' where a gradient is needed")
        require(
            ignore_index == -100,
            f"ignore_index is {ignore_index}, allowed for reduction 'mean' where a gradient is needed: -100",
        )
    rows, classes = log_prob.shape
    require_shape("grad_loss", grad_loss, (rows,) if reduction == "none" else (1,))
    per_row, _, _ = _row_weights(target, weight, ignore_index, classes)
    scale = wide(grad_loss) * per_row
    if reduction == "mean":
        scale = scale / per_row.sum()
    gradient = wide(log_prob).exp()
    gradient[torch.arange(rows), target] -= 1
    return (gradient * scale.unsqueeze(1)).to(grad_loss.dtype)


@kernel(
    "npu_binary_cross_entropy_with_logits_backward",
    source="the derivative of torch.nn.functional.binary_cross_entropy_with_logits; called by torch_npu's autograd "
    "(Ascend/op-plugin 26.0.0 op_plugin/config/derivatives.yaml)",
)
def npu_binary_cross_entropy_with_logits_backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    target: torch.Tensor,
    weight_opt: torch.Tensor | None,
    pos_weight_opt: torch.Tensor | None,
    reduction: int,
) -> torch.Tensor:
    """Gradient of the logits; `reduction` is 0 none, 1 mean, 2 sum."""
    values, labels = wide(input), wide(target)
    probability = torch.sigmoid(values)
    if pos_weight_opt is None:
        gradient = probability - labels
    else:
        positive = wide(pos_weight_opt) * labels
        gradient = (positive + 1 - labels) * probability - positive
    if weight_opt is not None:
        gradient = gradient * wide(weight_opt)
    if reduction == 1:
        gradient = gradient / input.numel()
    return (gradient * wide(grad_output)).to(input.dtype)


def _row_weights(
    target: torch.Tensor, weight: torch.Tensor | None, ignore_index: int, classes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight of each row (0 if ignored), whether it counts, and the weights of the classes."""
    classes_weight = torch.ones(classes) if weight is None else weight
    counted = (target != ignore_index).float()
    return classes_weight[target] * counted, counted, classes_weight


def _check(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: str, label_smoothing: float
) -> None:
    require_dtype("input", input)
    require_dim("input", input, 2)
    rows, classes = input.shape
    require(0 < rows <= _MOST_ROWS, f"input has {rows} rows, allowed: 1 to {_MOST_ROWS}")
    require(classes > 0, "input has no classes")
    require_dtype("target", target, (torch.int64,))
    require_shape("target", target, (rows,))
    require_indices("target", target, classes)
    require_choice("reduction", reduction, ("mean", "sum", "none"))
    require(0 <= label_smoothing < 1, f"label_smoothing is {label_smoothing}, allowed: 0 up to (not including) 1")
    if weight is not None:
        require_dtype("weight", weight, (torch.float32,))
        require_shape("weight", weight, (classes,))
