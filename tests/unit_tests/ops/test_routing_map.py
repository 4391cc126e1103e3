"""What is promised of a routing map, and that it does not outlive the map."""

import pytest
import torch

from ascend_patch.ops.routing_map import experts_per_token, set_experts_per_token
from ascend_patch.ops.topk_softmax import topk_softmax


@pytest.mark.parametrize("pre_softmax", [False, True])
def test_the_router_promises_its_top_k(pre_softmax):
    _, routing_map = topk_softmax(torch.randn(7, 5, requires_grad=True), 3, pre_softmax)
    assert experts_per_token(routing_map) == 3
    assert routing_map.sum(1).tolist() == [3] * 7


def test_the_promise_is_kept_with_the_tensor():
    """Through a graph that holds the tensor, and what returns the very same one."""
    routing_map = torch.ones(2, 3, dtype=torch.bool)
    set_experts_per_token(routing_map, 3)
    kept = [routing_map]
    assert experts_per_token(routing_map.bool()) == 3
    del routing_map
    assert experts_per_token(kept[0]) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[:, :2],
        lambda m: m[1:],
        lambda m: m & torch.tensor([True, False, True]),
        lambda m: m.clone(),
        lambda m: m.to(torch.int8),
        lambda m: m.view(3, 2),
        lambda m: torch.cat([m, m]),
    ],
    ids=["slice of experts", "slice of tokens", "mask", "clone", "int8", "view", "cat"],
)
def test_of_another_tensor_nothing_is_known(change):
    routing_map = torch.ones(2, 3, dtype=torch.bool)
    set_experts_per_token(routing_map, 3)
    assert experts_per_token(change(routing_map)) is None
