"""Adam on the NPU: several steps against float64, and in how many launches."""

import pytest
import torch
from torch import Tensor

from ascend_patch.ops.adam import reference
from tests.unit_tests.ops.checks import relative_error

pytestmark = pytest.mark.npu

SHAPES = [(17, 9), (5,), (1,), (0, 3), (2, 3, 4), (300, 300)]
HYPERPARAMETERS = {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def side_by_side(device: torch.device, shapes: list[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    """Random tensors, one after the other in one storage."""
    flat = torch.randn(sum(torch.Size(shape).numel() for shape in shapes)).to(device)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]


def apart(device: torch.device, shapes: list[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    """Random tensors, each in a storage of its own."""
    return [torch.randn(shape).to(device) for shape in shapes]


@pytest.fixture
def launches(npu, monkeypatch):
    """Number of elements in each call of the operator."""
    seen = []
    operator = torch.ops.npu.npu_apply_adam_w.out

    class Counting:
        @staticmethod
        def out(*args, out):
            seen.append(out[0].numel())
            return operator(*args, out=out)

    monkeypatch.setattr(torch.ops.npu, "npu_apply_adam_w", Counting)
    return seen


@pytest.mark.parametrize("adam_w_mode", [True, False])
@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("state", [side_by_side, apart])
@pytest.mark.parametrize("gradient", [side_by_side, apart])
def test_steps(npu, npu_device, adam_w_mode, bias_correction, state, gradient):
    found = [state(npu_device) for _ in range(3)]
    for t in found[2]:
        t.square_()
    expected = [[t.cpu().double() for t in tensors] for tensors in found]
    options = HYPERPARAMETERS | {"adam_w_mode": adam_w_mode, "bias_correction": bias_correction}
    for step in range(1, 4):
        grads = gradient(npu_device)
        npu.adam_step(found[0], grads, *found[1:], step=step, **options)
        reference.adam_step(expected[0], [g.cpu().double() for g in grads], *expected[1:], step=step, **options)
    for found_tensors, expected_tensors in zip(found, expected, strict=True):
        for a, b in zip(found_tensors, expected_tensors, strict=True):
            assert relative_error(a.cpu(), b) <= 1e-5


def test_the_first_update_is_exact_to_float32(npu, npu_device):
    """From zero state it is lr in size, whatever the gradient; float32 powers of beta2 would be off by 3e-5."""
    param, grad = torch.zeros(64, device=npu_device), torch.full((64,), 3.0, device=npu_device)
    state = [[torch.zeros_like(param)], [torch.zeros_like(param)]]
    npu.adam_step([param], [grad], *state, step=1, lr=1e-2, betas=(0.9, 0.999), eps=0.0, weight_decay=0.0)
    torch.testing.assert_close(param.cpu(), torch.full((64,), -1e-2), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("shuffled", [False, True])
def test_neighbours_take_one_launch(npu, npu_device, launches, shuffled):
    columns = [side_by_side(npu_device) for _ in range(4)]
    if shuffled:
        order = torch.randperm(len(SHAPES)).tolist()
        columns = [[column[i] for i in order] for column in columns]
    npu.adam_step(*columns, step=1, **HYPERPARAMETERS)
    assert launches == [sum(torch.Size(shape).numel() for shape in SHAPES)]


def test_short_scattered_gradients_are_gathered(npu, npu_device, launches):
    """The long one among them is not: it has a launch of its own."""
    shapes = [(3, 5), (7,), (300, 300), (11,), (2,)]
    params, exp_avgs, exp_avg_sqs = (side_by_side(npu_device, shapes) for _ in range(3))
    npu.adam_step(params, apart(npu_device, shapes), exp_avgs, exp_avg_sqs, step=1, **HYPERPARAMETERS)
    assert launches == [22, 90000, 13]


def test_scattered_tensors_take_a_launch_each(npu, npu_device, launches):
    npu.adam_step(*(apart(npu_device) for _ in range(4)), step=1, **HYPERPARAMETERS)
    assert sorted(launches) == sorted(torch.Size(shape).numel() for shape in SHAPES if 0 not in shape)


def test_neighbours_of_others_stay_as_they_are(npu, npu_device):
    """Between two tensors of a group lies one that is not to be updated."""
    params, grads, exp_avgs, exp_avg_sqs = (side_by_side(npu_device, [(4,), (4,), (4,)]) for _ in range(4))
    before = params[1].clone()
    some = [[column[0], column[2]] for column in (params, grads, exp_avgs, exp_avg_sqs)]
    npu.adam_step(*some, step=1, **HYPERPARAMETERS)
    assert torch.equal(params[1], before)


def test_what_the_operator_does_not_take(npu, npu_device, launches):
    """bfloat16 parameters and transposed ones among others; tensors on the host."""
    found = [apart(npu_device, [(6, 4), (5, 3), (8,)]) for _ in range(4)]
    found[0][0] = found[0][0].bfloat16()
    found[0][1] = found[0][1].t().contiguous().t()
    found[3] = [t.square() for t in found[3]]
    for column in found:
        column.append(torch.ones(3))
    expected = [[t.cpu().double() for t in column] for column in found]
    npu.adam_step(*found, step=2, **HYPERPARAMETERS)
    reference.adam_step(*expected, step=2, **HYPERPARAMETERS)
    assert launches == [8]
    for i, (a, b) in enumerate(zip(found[0], expected[0], strict=True)):
        assert relative_error(a.cpu(), b) <= (1e-2 if i == 0 else 1e-5)
