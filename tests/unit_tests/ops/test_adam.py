"""Adam: several steps of each variant against float64 and torch.optim."""

import pytest
import torch
from torch import Tensor

from ascend_patch.ops import adam as package
from ascend_patch.ops.adam import reference
from ascend_patch.ops.adam import torch as fast
from tests.unit_tests.ops.checks import relative_error

VARIANTS = [reference, fast]
SHAPES = [(17, 9), (5,), (1,), (0, 3), (2, 3, 4)]
HYPERPARAMETERS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}

State = tuple[list[Tensor], list[Tensor], list[Tensor]]


def fresh_state(dtype: torch.dtype = torch.float32) -> State:
    params = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    return params, [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]


def copy_of(state: State, dtype: torch.dtype) -> State:
    params, exp_avgs, exp_avg_sqs = ([t.to(dtype, copy=True) for t in tensors] for tensors in state)
    return params, exp_avgs, exp_avg_sqs


def train(variant, state: State, gradients: list[list[Tensor]], **options) -> None:
    params, exp_avgs, exp_avg_sqs = state
    for step, grads in enumerate(gradients, start=1):
        grads = [g.to(p.dtype) for g, p in zip(grads, params, strict=True)]
        variant.adam_step(params, grads, exp_avgs, exp_avg_sqs, step=step, **HYPERPARAMETERS | options)


def fresh_gradients(steps: int) -> list[list[Tensor]]:
    return [[torch.randn(shape) for shape in SHAPES] for _ in range(steps)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("adam_w_mode", [True, False])
@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_steps(variant, adam_w_mode, bias_correction, dtype, tolerance):
    options = {"adam_w_mode": adam_w_mode, "bias_correction": bias_correction}
    found = fresh_state(dtype)
    expected = copy_of(found, torch.float64)
    gradients = fresh_gradients(4)
    train(variant, found, gradients, **options)
    train(reference, expected, gradients, **options)
    for found_tensors, expected_tensors in zip(found, expected, strict=True):
        for a, b in zip(found_tensors, expected_tensors, strict=True):
            assert relative_error(a, b) <= tolerance


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("adam_w_mode", "optimizer"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
def test_as_torch(variant, adam_w_mode, optimizer):
    state = fresh_state()
    leaves = [torch.nn.Parameter(p.clone()) for p in state[0]]
    gradients = fresh_gradients(3)
    stock = optimizer(leaves, foreach=False, **HYPERPARAMETERS)
    for grads in gradients:
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad.clone()
        stock.step()
    train(variant, state, gradients, adam_w_mode=adam_w_mode)
    for param, leaf in zip(state[0], leaves, strict=True):
        torch.testing.assert_close(param, leaf.detach())


def test_the_fused_kernel_runs(monkeypatch):
    """float32 and contiguous: nothing is left for the slow path."""
    monkeypatch.setattr(reference, "adam_step", lambda *args, **kwargs: pytest.fail("took the slow path"))
    train(fast, fresh_state(), fresh_gradients(1))


def test_mixed_dtypes_and_strides():
    """A bfloat16 parameter with float32 state, and a transposed one, among others."""
    found = fresh_state()
    found[0][1] = found[0][1].bfloat16()
    found[0][0] = found[0][0].t().contiguous().t()
    expected = copy_of(found, torch.float64)
    gradients = fresh_gradients(2)
    gradients = [[g.bfloat16() if i == 1 else g for i, g in enumerate(grads)] for grads in gradients]
    train(fast, found, gradients)
    train(reference, expected, gradients)
    for i, (a, b) in enumerate(zip(found[0], expected[0], strict=True)):
        assert relative_error(a, b) <= (1e-2 if i == 1 else 1e-5)


def test_parameters_that_require_gradients_are_updated_in_place():
    params, exp_avgs, exp_avg_sqs = fresh_state()
    leaves = [torch.nn.Parameter(p.clone()) for p in params]
    fast.adam_step(leaves, fresh_gradients(1)[0], exp_avgs, exp_avg_sqs, step=1, **HYPERPARAMETERS)
    assert not torch.equal(leaves[0].detach(), params[0])
    assert leaves[0].grad_fn is None


def test_bad_arguments():
    params, exp_avgs, exp_avg_sqs = fresh_state()
    grads = fresh_gradients(1)[0]
    with pytest.raises(ValueError, match="4 grads.*must be equally long"):
        package.adam_step(params, grads[1:], exp_avgs, exp_avg_sqs, step=1, **HYPERPARAMETERS)
    with pytest.raises(ValueError, match="step counts updates from 1, found 0"):
        package.adam_step(params, grads, exp_avgs, exp_avg_sqs, step=0, **HYPERPARAMETERS)
