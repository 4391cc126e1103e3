"""The portable variant on the NPU: it takes the maps that the Ascend operator does not, and the host waits for none."""

import pytest
import torch

from ascend_patch.ops.permute import reference
from ascend_patch.ops.permute import torch as portable
from tests.unit_tests.ops.npu_checks import check_on_npu

pytestmark = pytest.mark.npu


def uneven_map(tokens: int, experts: int) -> torch.Tensor:
    """Tokens with anything from no expert to all of them, and an expert without tokens."""
    routing_map = torch.rand(tokens, experts) < 0.4
    routing_map[:, 1] = False
    routing_map[0] = False
    return routing_map


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back(npu_device, dtype):
    routing_map = uneven_map(11, 5)
    count = int(routing_map.sum())

    def run(variant, routing_map):
        def there_and_back(tokens, probs):
            permuted, permuted_probs, indices = variant.permute(tokens, routing_map, probs, count)
            weighted = permuted * permuted_probs.unsqueeze(-1)
            return variant.unpermute(weighted, indices, tokens.shape, None, routing_map)

        return there_and_back

    check_on_npu(
        run(portable, routing_map.to(npu_device)),
        run(reference, routing_map),
        [torch.randn(11, 6).to(dtype), torch.rand(11, 5).to(dtype)],
        npu_device,
        tolerance=2e-2 if dtype == torch.bfloat16 else None,  # a product that is rounded before it is summed
    )


@pytest.mark.simulator
def test_the_host_does_not_wait(npu_device):
    from ascend_sim import counters

    routing_map = uneven_map(11, 5)
    count = int(routing_map.sum())
    tokens = torch.randn(11, 6, device=npu_device, requires_grad=True)
    probs, on_npu = torch.rand(11, 5, device=npu_device, requires_grad=True), routing_map.to(npu_device)
    counters.take()
    permuted, permuted_probs, indices = portable.permute(tokens, on_npu, probs, count)
    restored = portable.unpermute(permuted * permuted_probs.unsqueeze(-1), indices, tokens.shape, None, on_npu)
    restored.sum().backward()
    taken = counters.take()
    assert taken["launches"] and taken["syncs"] == []
