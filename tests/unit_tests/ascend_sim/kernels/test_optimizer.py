"""npu_apply_adam_w against the formulas in float64, over several steps."""

import pytest
import torch

from ascend_sim.kernels.optimizer import npu_apply_adam_w, npu_apply_adam_w_out
from tests.unit_tests.ascend_sim.kernels.checks import BFLOAT16, FLOAT32, assert_close, not_modelled, refuses

BETAS, LR, DECAY, EPSILON = (0.9, 0.95), 1e-2, 0.1, 1e-8


def formula(var, m, v, largest, grad, step, maximize):
    grad = -grad if maximize else grad
    m = BETAS[0] * m + (1 - BETAS[0]) * grad
    v = BETAS[1] * v + (1 - BETAS[1]) * grad**2
    largest = v if largest is None else torch.maximum(largest, v)
    step_size = LR / (1 - BETAS[0] ** step)
    var = var * (1 - LR * DECAY) - step_size * m / ((largest / (1 - BETAS[1] ** step)).sqrt() + EPSILON)
    return var, m, v, largest


def adam(operator, tensors, grad, largest, step, maximize):
    powers = [beta ** (step - 1) for beta in BETAS]
    arguments = (*powers, LR, DECAY, *BETAS, EPSILON, grad, largest, largest is not None, maximize)
    return operator(*arguments, out=tensors)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_steps(dtype, amsgrad, maximize):
    tensors = [torch.randn(17).to(dtype), *torch.zeros(2, 17, dtype=dtype)]
    largest = torch.zeros(17, dtype=dtype) if amsgrad else None
    exact = [tensor.double() for tensor in tensors]
    exact_largest = torch.zeros(17).double() if amsgrad else None
    for step in (1, 2, 3):
        grad = torch.randn(17).to(dtype)
        *exact, new = formula(*exact, exact_largest, grad.double(), step, maximize)
        exact_largest = new if amsgrad else None
        found = adam(npu_apply_adam_w_out, tensors, grad, largest, step, maximize)
        assert all(a is b for a, b in zip(found, tensors, strict=True))
        assert_close(tensors, exact)
        if amsgrad:
            assert_close(largest, exact_largest)


def test_it_is_pytorchs_adamw():
    parameter = torch.nn.Parameter(torch.randn(5, 3))
    tensors = [parameter.detach().clone(), *torch.zeros(2, 5, 3)]
    optimizer = torch.optim.AdamW([parameter], lr=LR, betas=BETAS, eps=EPSILON, weight_decay=DECAY)
    for step in (1, 2, 3, 4):
        parameter.grad = torch.randn(5, 3)
        optimizer.step()
        adam(npu_apply_adam_w_out, tensors, parameter.grad, None, step, False)
    assert_close(tensors[0], parameter.detach().double())


def test_constraints():
    tensors, grad = list(torch.zeros(3, 4)), torch.randn(4)
    for message, (given, gradient) in {
        "out has 2 tensors": (tensors[:2], grad),
        "var is float64": ([tensor.double() for tensor in tensors], grad),
        "one data type is needed, got var float32, m float32, v float32, grad bfloat16": (tensors, grad.bfloat16()),
        r"grad has shape \(1,\), needed: \(4,\)": (tensors, grad[:1]),
        r"v has shape \(3,\)": ([*tensors[:2], tensors[2][:3]], grad),
    }.items():
        with refuses("npu_apply_adam_w.out", message):
            adam(npu_apply_adam_w_out, given, gradient, None, 1, False)
    with refuses("npu_apply_adam_w.out", "max_grad_norm is None, with amsgrad"):
        npu_apply_adam_w_out(1.0, 1.0, LR, DECAY, *BETAS, EPSILON, grad, None, True, False, tensors)
    with not_modelled("npu_apply_adam_w", "only the form with out="):
        npu_apply_adam_w(1.0, 1.0, LR, DECAY, *BETAS, EPSILON, grad, None, False, False)


@pytest.mark.simulator
def test_on_device(torch_npu, npu_device):
    tensors, grad = [torch.randn(9), torch.randn(9), torch.rand(9)], torch.randn(9)
    exact = formula(*(tensor.double() for tensor in tensors), None, grad.double(), 2, False)
    on_device = [tensor.to(npu_device) for tensor in tensors]
    adam(torch_npu.npu_apply_adam_w, on_device, grad.to(npu_device), None, 2, False)
    assert_close(on_device, exact[:3])
    with not_modelled("npu_apply_adam_w", "only the form with out="):
        torch_npu.npu_apply_adam_w(1.0, 1.0, LR, DECAY, *BETAS, EPSILON, on_device[0], None, False, False)
