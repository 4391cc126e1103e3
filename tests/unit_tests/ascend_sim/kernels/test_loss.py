"""npu_cross_entropy_loss against PyTorch in float64."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ascend_sim.kernels.loss import (
    npu_binary_cross_entropy_with_logits_backward,
    npu_cross_entropy_loss,
    npu_cross_entropy_loss_backward,
)
from tests.unit_tests.ascend_sim.kernels.checks import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    assert_close,
    check_on_device,
    refuses,
)

DTYPES = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@DTYPES
@REDUCTIONS
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [-100, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_forward(dtype, reduction, weighted, ignored, smoothing):
    x, target = torch.randn(13, 7).to(dtype), torch.randint(0, 7, (13,))
    target[:2] = torch.tensor([3, 1])
    weight = torch.rand(7) if weighted else None
    loss, log_prob, zloss, lse = npu_cross_entropy_loss(x, target, weight, reduction, ignored, smoothing)
    expected = cross_entropy(
        x.double(),
        target,
        None if weight is None else weight.double(),
        reduction=reduction,
        ignore_index=ignored,
        label_smoothing=smoothing,
    )
    assert loss.dtype == log_prob.dtype == dtype
    assert zloss.numel() == lse.numel() == 0
    assert_close(loss, expected.reshape(13 if reduction == "none" else 1))
    assert_close(log_prob, x.double().log_softmax(-1))


@DTYPES
@REDUCTIONS
def test_backward(dtype, reduction):
    x, target = torch.randn(9, 5).to(dtype), torch.randint(0, 5, (9,))
    weight, ignored = (None, -100) if reduction == "mean" else (torch.rand(5), 2)
    leaf = x.double().requires_grad_()
    exact_weight = None if weight is None else weight.double()
    loss = cross_entropy(leaf, target, exact_weight, reduction=reduction, ignore_index=ignored)
    gradient = torch.randn(loss.numel()).to(dtype)
    loss.backward(gradient.double().view_as(loss))
    log_prob = npu_cross_entropy_loss(x, target, weight, reduction, ignored, 0.0)[1]
    found = npu_cross_entropy_loss_backward(gradient, log_prob, target, weight, reduction, ignored, 0.0)
    assert_close(found, leaf.grad)


@pytest.mark.simulator
@REDUCTIONS
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_gradients_on_device(torch_npu, npu_device, reduction, dtype):
    target = torch.randint(0, 6, (8,))
    check_on_device(
        lambda x: torch_npu.npu_cross_entropy_loss(x, target.to(npu_device), reduction=reduction)[0],
        lambda x: cross_entropy(x, target, reduction=reduction).reshape(-1),
        [torch.randn(8, 6).to(dtype)],
        npu_device,
    )


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary(reduction, weighted):
    x, target = torch.randn(4, 3), torch.rand(4, 3)
    weight, positive = (torch.rand(3), torch.rand(3)) if weighted else (None, None)
    leaf = x.double().requires_grad_()
    loss = binary_cross_entropy_with_logits(
        leaf,
        target.double(),
        weight if weight is None else weight.double(),
        reduction=["none", "mean", "sum"][reduction],
        pos_weight=positive if positive is None else positive.double(),
    )
    gradient = torch.randn(loss.shape)
    loss.backward(gradient.double())
    found = npu_binary_cross_entropy_with_logits_backward(gradient, x, target, weight, positive, reduction)
    assert_close(found, leaf.grad)


def test_constraints():
    x, target = torch.randn(4, 5), torch.randint(0, 5, (4,))

    def loss(x=x, target=target, weight=None, reduction="mean", ignored=-100, smoothing=0.0):
        return npu_cross_entropy_loss(x, target, weight, reduction, ignored, smoothing)

    for message, change in {
        "input is float64": {"x": x.double()},
        "input has 3 dimensions": {"x": x[None]},
        "input has 0 rows, allowed: 1 to 200000": {"x": x[:0], "target": target[:0]},
        "input has 200001 rows": {"x": torch.empty(1, 1).expand(200001, 5), "target": torch.zeros(200001).long()},
        "target is int32, allowed: int64": {"target": target.int()},
        r"target has shape \(3,\), needed: \(4,\)": {"target": target[:3]},
        "target holds values from -100": {"target": torch.full_like(target, -100)},
        "target holds values from 5": {"target": torch.full_like(target, 5)},
        "weight is float64, allowed: float32": {"weight": torch.ones(5).double()},
        r"weight has shape \(4,\), needed: \(5,\)": {"weight": torch.ones(4)},
        "reduction is 'batchmean'": {"reduction": "batchmean"},
        "ignore_index is 5, allowed: less than 5 classes": {"ignored": 5},
        "label_smoothing is 1.0": {"smoothing": 1.0},
    }.items():
        with refuses("npu_cross_entropy_loss", message):
            loss(**change)


def test_constraints_where_a_gradient_is_needed():
    log_prob, target = torch.randn(4, 5).log_softmax(-1), torch.randint(0, 5, (4,))
    for message, (shape, *arguments) in {
        "label_smoothing is 0.1": (1, None, "sum", -100, 0.1),
        "weight is given, not allowed for reduction 'mean'": (1, torch.ones(5), "mean", -100, 0.0),
        "ignore_index is 2, allowed for reduction 'mean'": (1, None, "mean", 2, 0.0),
        r"grad_loss has shape \(1,\), needed: \(4,\)": (1, None, "none", -100, 0.0),
    }.items():
        with refuses("npu_cross_entropy_loss_backward", message):
            npu_cross_entropy_loss_backward(torch.ones(shape), log_prob, target, *arguments)
