"""The allgather dispatcher's fused permutation, against upstream's own."""

from types import SimpleNamespace

import pytest
import torch

from ascend_patch.features import dispatcher
from ascend_patch.ops.topk_softmax import topk_softmax


@pytest.fixture
def wrapped(monkeypatch):
    """upstream's and our ``dispatch_postprocess``, the latter among our other patches."""
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    original = token_dispatcher.MoEAllGatherTokenDispatcher.dispatch_postprocess
    monkeypatch.setattr(token_dispatcher, "permute", dispatcher.permute(moe_utils.permute))
    return original, dispatcher.allgather_dispatch_postprocess(original)


def state(fused: bool, local: range, routing_map: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(
        config=SimpleNamespace(moe_permute_fusion=fused),
        num_local_experts=len(local),
        local_expert_indices=list(local),
        routing_map=routing_map,
    )


@pytest.mark.parametrize("local", [range(0, 2), range(2, 6), range(0, 6)])
def test_like_upstream(wrapped, local):
    tokens = torch.randn(9, 5)
    probs, routing_map = topk_softmax(torch.randn(9, 6), 2)
    results, gradients, states = [], [], []
    for function, fused in zip(wrapped, (False, True), strict=True):
        inputs = [tokens.clone().requires_grad_(), probs.clone().requires_grad_()]
        states.append(state(fused, local, routing_map))
        permuted, tokens_per_expert, permuted_probs = function(states[-1], *inputs)
        results.append((permuted, tokens_per_expert, permuted_probs))
        gradients.append(torch.autograd.grad((permuted * permuted_probs.unsqueeze(-1)).square().sum(), inputs))
    for found, expected in zip(results[1] + gradients[1], results[0] + gradients[0], strict=True):
        torch.testing.assert_close(found, expected)
    assert states[1].routing_map is None
    assert torch.equal(states[1].local_map, states[0].local_map)
    assert states[1].hidden_shape_before_permute == (9, 5)
    assert torch.equal(
        states[1].reversed_local_input_permutation_mapping, states[0].reversed_local_input_permutation_mapping
    )


def test_untouched_without_the_flag(wrapped):
    probs, routing_map = topk_softmax(torch.randn(4, 3), 2)
    tokens = torch.randn(4, 5)
    results = [function(state(False, range(0, 3), routing_map), tokens, probs) for function in wrapped]
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_all_experts_keep_the_promise_of_their_map(wrapped):
    """Which lets the Ascend operator permute; a part of the experts does not have it."""
    from ascend_patch.ops.routing_map import experts_per_token

    for local, promised in ((range(0, 4), 2), (range(1, 3), None)):
        probs, routing_map = topk_softmax(torch.randn(4, 4), 2)
        made = state(True, local, routing_map)
        wrapped[1](made, torch.randn(4, 5), probs)
        assert experts_per_token(made.local_map) == promised
