"""Routing on the NPU against float64, forward and backward, and what its results promise."""

import pytest
import torch

from ascend_patch.ops.registry import Unsupported
from ascend_patch.ops.topk_softmax import reference
from tests.unit_tests.ops.checks import TOLERANCES, relative_error
from tests.unit_tests.ops.npu_checks import check_on_npu

pytestmark = pytest.mark.npu

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def distinct_logits(tokens, experts, dtype):
    """No two of a token are equal in ``dtype``, so that every variant chooses the same experts."""
    ranks = torch.rand(tokens, experts).argsort(1)
    return (ranks / 4 - experts / 8 + torch.rand(tokens, 1).round()).to(dtype)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("pre_softmax", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "topk"), [(37, 8, 2), (1, 8, 2), (5, 3, 3), (4, 1, 1), (9, 13, 5)])
def test_probabilities_and_gradients(npu, npu_device, dtype, pre_softmax, tokens, experts, topk):
    logits = distinct_logits(tokens, experts, dtype)
    check_on_npu(
        lambda t: npu.topk_softmax(t, topk, pre_softmax)[0],
        lambda t: reference.topk_softmax(t, topk, pre_softmax)[0],
        [logits],
        npu_device,
    )
    probs, routing_map = npu.topk_softmax(logits.to(npu_device), topk, pre_softmax)
    _, expected_map = reference.topk_softmax(logits, topk, pre_softmax)
    assert routing_map.dtype == torch.bool
    assert torch.equal(routing_map.cpu(), expected_map)
    assert not probs.cpu()[~expected_map].any()


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(("tokens", "experts", "topk"), [(37, 8, 2), (1, 8, 2), (5, 3, 3), (4, 1, 1)])
def test_balancing_scores_and_gradients(npu, npu_device, dtype, tokens, experts, topk):
    logits = distinct_logits(tokens, experts, dtype)
    check_on_npu(
        lambda t: npu.balancing_scores(t, topk)[1],
        lambda t: reference.balancing_scores(t, topk)[1],
        [logits],
        npu_device,
    )
    routing_map, scores = npu.balancing_scores(logits.to(npu_device), topk)
    assert scores.dtype == FLOAT32
    assert torch.equal(routing_map.cpu(), reference.balancing_scores(logits, topk)[0])


@pytest.mark.parametrize("pre_softmax", [False, True])
def test_equal_logits(npu, npu_device, pre_softmax):
    """Whichever of the equals win: as many as asked for, with the same share, and the gradient of that choice."""
    logits = torch.ones(6, 5)
    on_npu = logits.to(npu_device).requires_grad_()
    probs, routing_map = npu.topk_softmax(on_npu, 2, pre_softmax)
    assert routing_map.sum(1).tolist() == [2] * 6
    share = 1 / 5 if pre_softmax else 1 / 2
    torch.testing.assert_close(probs.cpu(), routing_map.cpu() * share)

    chosen, grad = routing_map.cpu(), torch.randn(6, 5)
    wide = logits.double().requires_grad_()
    softmax = wide.softmax(1) if pre_softmax else wide.masked_fill(~chosen, -torch.inf).softmax(1)
    (expected,) = torch.autograd.grad((softmax * chosen), wide, grad.double())
    probs.backward(grad.to(npu_device))
    assert relative_error(on_npu.grad.cpu(), expected) <= TOLERANCES[FLOAT32]


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_a_probability_that_vanishes_still_routes(npu, npu_device, dtype):
    logits = torch.tensor([[1000.0, 0.0, -1000.0]]).to(dtype)
    probs, routing_map = npu.topk_softmax(logits.to(npu_device), 2, False)
    assert routing_map.tolist() == [[True, True, False]]
    assert probs.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("pre_softmax", [False, True])
def test_non_contiguous_logits(npu, npu_device, pre_softmax):
    check_on_npu(
        lambda t: npu.topk_softmax(t.t(), 2, pre_softmax)[0],
        lambda t: reference.topk_softmax(t.t(), 2, pre_softmax)[0],
        [distinct_logits(7, 4, FLOAT32).t().contiguous()],
        npu_device,
    )


def test_gradient_of_experts_that_were_not_chosen_does_not_count(npu, npu_device):
    logits = distinct_logits(5, 4, FLOAT32).to(npu_device).requires_grad_()
    probs, routing_map = npu.topk_softmax(logits, 2)
    (first,) = torch.autograd.grad(probs, logits, grad := torch.randn_like(probs), retain_graph=True)
    (second,) = torch.autograd.grad(probs, logits, grad + (~routing_map) * 7.0)
    torch.testing.assert_close(first, second)


def test_what_the_operator_does_not_take(npu, npu_device):
    with pytest.raises(Unsupported, match="float64; npu_moe_gating_top_k_softmax_v2 takes"):
        npu.topk_softmax(torch.randn(2, 4, dtype=torch.float64, device=npu_device), 2)
    with pytest.raises(Unsupported, match="top-k of 1025"):
        npu.topk_softmax(torch.randn(2, 1026, device=npu_device), 1025)
    with pytest.raises(Unsupported, match="no tokens"):
        npu.topk_softmax(torch.randn(0, 4, device=npu_device), 2)
