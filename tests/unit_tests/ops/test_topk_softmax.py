"""Top-k softmax: each variant against float64 and against upstream's router."""

from functools import partial

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import (
    compute_routing_scores_for_aux_loss,
    topk_routing_with_score_function,
)

from ascend_patch.ops import topk_softmax as package
from ascend_patch.ops.topk_softmax import reference
from ascend_patch.ops.topk_softmax import torch as fast
from tests.unit_tests.ops.checks import check_against_float64, check_deterministic_backward

VARIANTS = [reference, fast]


def only_probs(module, topk, pre_softmax):
    return lambda logits: module.topk_softmax(logits, topk, pre_softmax)[0]


def distinct_logits(tokens: int, experts: int, dtype: torch.dtype) -> torch.Tensor:
    """No two equal in a row, in any dtype, so that the choice of experts is the same in all."""
    order = torch.rand(tokens, experts).argsort(dim=1)
    return ((order - experts / 2) * 0.25).to(dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pre_softmax", [False, True])
@pytest.mark.parametrize(("tokens", "experts", "topk"), [(11, 8, 2), (5, 7, 7), (1, 1, 1), (0, 4, 2), (9, 5, 1)])
def test_value_and_gradient(variant, dtype, pre_softmax, tokens, experts, topk):
    check_against_float64(
        only_probs(variant, topk, pre_softmax),
        only_probs(reference, topk, pre_softmax),
        distinct_logits(tokens, experts, dtype),
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pre_softmax", [False, True])
def test_as_upstream(variant, dtype, pre_softmax):
    logits = torch.randn(30, 8).to(dtype).requires_grad_()  # bfloat16 has equal logits among these
    probs, routing_map = variant.topk_softmax(logits, 2, pre_softmax)
    expected_probs, expected_map = topk_routing_with_score_function(logits, 2, use_pre_softmax=pre_softmax)
    assert torch.equal(routing_map, expected_map)
    assert routing_map.dtype == torch.bool
    torch.testing.assert_close(probs, expected_probs)
    grad = torch.randn(30, 8).to(dtype)
    found, expected = (torch.autograd.grad(p, logits, grad)[0] for p in (probs, expected_probs))
    torch.testing.assert_close(found, expected)


def test_gradcheck():
    logits = distinct_logits(6, 5, torch.float64).requires_grad_()
    for pre_softmax in (False, True):
        assert torch.autograd.gradcheck(only_probs(fast, 2, pre_softmax), (logits,))


def test_the_map_carries_no_gradient():
    probs, routing_map = fast.topk_softmax(torch.randn(3, 4, requires_grad=True), 2)
    assert probs.requires_grad
    assert not routing_map.requires_grad


def test_backward_is_deterministic():
    check_deterministic_backward(only_probs(fast, 2, False), torch.randn(31, 8).bfloat16())


@pytest.mark.parametrize("topk", [0, 5])
def test_bad_topk(topk):
    with pytest.raises(ValueError, match=f"topk is {topk}.*between 1 and E"):
        package.topk_softmax(torch.randn(3, 4), topk)


def test_bad_logits():
    with pytest.raises(ValueError, match=r"logits must be \[T, E\]"):
        partial(package.topk_softmax, topk=1)(torch.randn(2, 3, 4))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "experts", "topk"), [(11, 8, 2), (5, 7, 7), (1, 1, 1), (0, 4, 2)])
def test_balancing_scores_and_gradient(variant, dtype, tokens, experts, topk):
    check_against_float64(
        lambda logits: variant.balancing_scores(logits, topk)[1],
        lambda logits: reference.balancing_scores(logits, topk)[1],
        distinct_logits(tokens, experts, dtype),
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_balancing_scores_as_upstream(variant, dtype):
    logits = torch.randn(30, 8).to(dtype).requires_grad_()
    routing_map, scores = variant.balancing_scores(logits, 2)
    expected_map, expected_scores = compute_routing_scores_for_aux_loss(logits, 2, "softmax")
    assert torch.equal(routing_map, expected_map) and routing_map.dtype == torch.bool
    assert scores.dtype == expected_scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected_scores)
    grad = torch.randn(30, 8)
    found, expected = (torch.autograd.grad(s, logits, grad)[0] for s in (scores, expected_scores))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("topk", [0, 6])
def test_balancing_scores_of_too_many_experts(topk):
    with pytest.raises(ValueError, match=f"balancing_scores: topk is {topk}"):
        package.balancing_scores(torch.randn(4, 5), topk)
