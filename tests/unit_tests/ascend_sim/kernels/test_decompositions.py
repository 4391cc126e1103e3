"""Operators whose upstream definition is put back: torch_npu would call the device past the dispatcher."""

import pytest
import torch
from torch.nn.functional import kl_div, l1_loss, one_hot, scaled_dot_product_attention

from tests.unit_tests.ascend_sim.kernels.checks import check_on_device

pytestmark = pytest.mark.simulator


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_losses(npu_device, reduction):
    inputs = [torch.randn(4, 3).log_softmax(-1), torch.rand(4, 3)]
    for loss in (kl_div, l1_loss):
        check_on_device(
            lambda x, y, loss=loss: loss(x, y, reduction=reduction),
            lambda x, y, loss=loss: loss(x, y, reduction=reduction),
            inputs,
            npu_device,
        )


def test_one_hot(npu_device):
    index = torch.randint(0, 5, (3, 4))
    assert torch.equal(one_hot(index.to(npu_device), 5).cpu(), one_hot(index, 5))


@pytest.mark.parametrize("causal", [False, True])
def test_scaled_dot_product_attention(npu_device, causal):
    check_on_device(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True),
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True),
        [torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)],
        npu_device,
    )


def test_masked_writes_and_gathers(npu_device):
    x, index = torch.randn(5, 4), torch.randint(0, 4, (5, 2))
    check_on_device(
        lambda x: x.gather(1, index.to(npu_device)).repeat_interleave(2, 0),
        lambda x: x.gather(1, index).repeat_interleave(2, 0),
        [x],
        npu_device,
    )
