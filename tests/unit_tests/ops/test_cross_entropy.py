"""Cross entropy: one rank and several, smoothed and not, against float64 and against upstream."""

import threading
from functools import partial

import pytest
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from torch import Tensor

from ascend_patch.ops import blocks
from ascend_patch.ops import cross_entropy as package
from ascend_patch.ops.cross_entropy import reference
from ascend_patch.ops.cross_entropy import torch as fast
from tests.unit_tests.ops.checks import (
    check_against_float64,
    check_deterministic_backward,
    relative_error,
    results_and_gradients,
)

VARIANTS = [reference, fast]
SHAPES = [(7, 3, 33), (1, 50), (0, 5), (2, 0, 9), (40, 1)]


def logits_and_target(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return 3.0 * torch.randn(shape).to(dtype), torch.randint(0, shape[-1], shape[:-1])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient(variant, dtype, shape):
    tolerance = 2e-2 if dtype == torch.bfloat16 else None
    check_against_float64(
        variant.cross_entropy,
        reference.cross_entropy,
        *logits_and_target(*shape, dtype=dtype),
        tolerance=tolerance,
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_label_smoothing(variant, dtype):
    smoothed = partial(variant.cross_entropy, label_smoothing=0.1)
    expected = partial(reference.cross_entropy, label_smoothing=0.1)
    check_against_float64(
        smoothed,
        expected,
        *logits_and_target(11, 2, 37, dtype=dtype),
        tolerance=2e-2 if dtype == torch.bfloat16 else None,
    )


def test_label_smoothing_is_that_of_torch():
    logits, target = logits_and_target(9, 31)
    # torch spreads a over all classes, Megatron a * V / (V - 1) to leave the target 1 - a.
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=0.1 * 31 / 30)
    torch.testing.assert_close(reference.cross_entropy(logits, target, label_smoothing=0.1), expected)


def test_many_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS_ON_HOST", 64)
    check_against_float64(fast.cross_entropy, reference.cross_entropy, *logits_and_target(29, 17))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradcheck(label_smoothing):
    logits, target = logits_and_target(5, 2, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: fast.cross_entropy(x, target, label_smoothing), logits.requires_grad_(), fast_mode=False
    )


def test_backward_is_deterministic():
    check_deterministic_backward(fast.cross_entropy, *logits_and_target(13, 41, dtype=torch.bfloat16))


@pytest.mark.parametrize("variant", VARIANTS)
def test_extreme_logits_stay_finite(variant):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    target = torch.tensor([1, 2])
    loss, (gradient,) = results_and_gradients(variant.cross_entropy, [logits, target], torch.ones(2))
    torch.testing.assert_close(loss, torch.tensor([2e4, 1.0986123]))
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0, 0.0], [1 / 3, 1 / 3, -2 / 3]]))


def test_bfloat16_gradient_of_a_confident_prediction():
    """The target's entry is 1e-3: a probability rounded to bfloat16 before 1 is subtracted would lose it."""
    logits = torch.tensor([[7.0, 0.0]], dtype=torch.bfloat16)
    target = torch.tensor([0])
    _, (gradient,) = results_and_gradients(fast.cross_entropy, [logits, target], torch.ones(1))
    _, (expected,) = results_and_gradients(reference.cross_entropy, [logits.double(), target], torch.ones(1))
    assert relative_error(gradient[:, :1], expected[:, :1]) <= 1e-2


def test_non_contiguous_logits():
    logits, target = logits_and_target(6, 4, 19)
    check_against_float64(fast.cross_entropy, reference.cross_entropy, logits.transpose(0, 1), target.t())


@pytest.mark.parametrize("variant", VARIANTS)
def test_as_upstream(variant, world_of_one):
    logits, target = logits_and_target(9, 2, 45)
    grad_loss = torch.rand(9, 2)
    found = results_and_gradients(variant.cross_entropy, [logits, target], grad_loss)
    stock = partial(vocab_parallel_cross_entropy, tp_group=world_of_one)
    expected = results_and_gradients(stock, [logits, target], grad_loss)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_target_that_no_rank_holds_is_as_upstream(variant, world_of_one):
    logits, target = logits_and_target(5, 45)
    target[2], target[3] = -100, 45
    found = results_and_gradients(variant.cross_entropy, [logits, target], torch.ones(5))
    stock = partial(vocab_parallel_cross_entropy, tp_group=world_of_one)
    torch.testing.assert_close(found, results_and_gradients(stock, [logits, target], torch.ones(5)))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_vocabulary_split_between_ranks(variant, label_smoothing):
    logits, target = logits_and_target(6, 3, 24)
    logits[..., :8] += 20.0  # one rank's part dominates the others'
    grad_loss = torch.rand(6, 3)
    whole = partial(reference.cross_entropy, label_smoothing=label_smoothing)
    loss, (gradient,) = results_and_gradients(whole, [logits, target], grad_loss)

    def one_rank(rank: int, group: dist.ProcessGroup) -> tuple[Tensor, list[Tensor]]:
        part = partial(variant.cross_entropy, label_smoothing=label_smoothing, group=group, vocab_start=8 * rank)
        return results_and_gradients(part, [logits[..., 8 * rank : 8 * rank + 8], target], grad_loss)

    results = run_ranks(3, one_rank)
    for part_loss, _ in results:
        torch.testing.assert_close(part_loss, loss)
    torch.testing.assert_close(torch.cat([grad for _, (grad,) in results], dim=-1), gradient)


def test_bad_arguments():
    logits, target = logits_and_target(4, 9)
    with pytest.raises(ValueError, match="target has shape"):
        package.cross_entropy(logits, target[:3])
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        package.cross_entropy(logits, target, label_smoothing=1.0)


@pytest.fixture
def world_of_one() -> dist.ProcessGroup:
    return dist.ProcessGroupGloo(dist.HashStore(), 0, 1)


def run_ranks(size: int, body) -> list:
    """``body(rank, group)`` in one thread a rank; results in rank order."""
    store, results, errors = dist.HashStore(), [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = body(rank, dist.ProcessGroupGloo(store, rank, size))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    if errors:
        raise errors[0]
    return results
