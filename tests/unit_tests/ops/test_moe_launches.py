"""What the MoE operators ask of a device, counted on the simulated one: launches, and that the host never waits."""

import importlib
from collections.abc import Callable

import pytest
import torch

from ascend_patch.ops.routing_map import set_experts_per_token

pytestmark = pytest.mark.simulator

TOKENS, EXPERTS, TOPK, HIDDEN, FFN = 48, 8, 2, 64, 96
COUNTS = [12, 0, 30, 6, 12, 12, 12, 12]
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def variant(operator: str, name: str):
    return importlib.import_module(f"ascend_patch.ops.{operator}.{name}")


def leaf(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, device=device).to(dtype).requires_grad_()


def counted(run: Callable) -> tuple[int, list]:
    """Launches and synchronisations of ``run``, which returns what to differentiate with an equal gradient."""
    from ascend_sim import counters

    run()  # what is made once and kept
    counters.take()
    outputs = run()
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    taken = counters.take()
    ones = len(outputs)
    return sum(row["count"] for row in taken["launches"]) - ones, taken["syncs"]


def route(name: str, dtype: torch.dtype, device: torch.device) -> Callable:
    logits = leaf(TOKENS, EXPERTS, dtype=dtype, device=device)
    return lambda: [variant("topk_softmax", name).topk_softmax(logits, TOPK)[0]]


def balance(name: str, dtype: torch.dtype, device: torch.device) -> Callable:
    logits = leaf(TOKENS, EXPERTS, dtype=dtype, device=device)
    return lambda: [variant("topk_softmax", name).balancing_scores(logits, TOPK)[1]]


def permute(name: str, dtype: torch.dtype, device: torch.device) -> Callable:
    """There and back, the probabilities beside."""
    tokens = leaf(TOKENS, HIDDEN, dtype=dtype, device=device)
    probs = leaf(TOKENS, EXPERTS, dtype=dtype, device=device)
    chosen = torch.rand(TOKENS, EXPERTS, device=device).topk(TOPK, dim=1).indices
    routing_map = torch.zeros(TOKENS, EXPERTS, dtype=torch.bool, device=device).scatter_(1, chosen, True)
    set_experts_per_token(routing_map, TOPK)
    module = variant("permute", name)

    def run():
        permuted, permuted_probs, indices = module.permute(tokens, routing_map, probs, TOKENS * TOPK)
        return [module.unpermute(permuted, indices, (TOKENS, HIDDEN), None, routing_map), permuted_probs]

    return run


def multiply(name: str, dtype: torch.dtype, device: torch.device) -> Callable:
    x = leaf(sum(COUNTS), HIDDEN, dtype=dtype, device=device)
    weight = leaf(EXPERTS, FFN, HIDDEN, dtype=dtype, device=device)
    total = torch.zeros(weight.shape, device=device)
    return lambda: [variant("grouped_gemm", name).grouped_gemm(x, weight, COUNTS, total)]


@pytest.mark.parametrize(
    ("make", "dtype", "launches"),
    [
        (route, FLOAT32, 6),  # operator, ==, *, sum, any; softmax backward
        (route, BFLOAT16, 10),  # and four conversions
        (balance, FLOAT32, 4),  # operator, ==, any; softmax backward
        (balance, BFLOAT16, 5),
        (permute, FLOAT32, 4),
        (permute, BFLOAT16, 4),
        (multiply, FLOAT32, 4),  # three products, and adding the weight's gradient up
        (multiply, BFLOAT16, 3),
    ],
)
def test_forward_and_backward(npu_device, make, dtype, launches):
    found, syncs = counted(make("npu", dtype, npu_device))
    print(f"{make.__name__}: {found} launches, portable {counted(make('torch', dtype, npu_device))[0]}")
    assert found == launches
    assert syncs == []
