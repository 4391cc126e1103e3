"""What the operators outside of the experts ask of the NPU, forward and backward, counted by the simulator."""

import importlib

import pytest
import torch

pytestmark = pytest.mark.simulator

BFLOAT16 = torch.bfloat16


@pytest.fixture
def launches(npu_device):
    """launches(function, *inputs): launches of a second call and its backward pass, which must not wait."""
    from ascend_sim import counters

    def count(function, *inputs):
        leaves = [t.to(npu_device).requires_grad_() for t in inputs]
        grad_output = torch.randn_like(function(*leaves))
        counters.take()
        torch.autograd.grad(function(*leaves), leaves, grad_output)
        taken = counters.take()
        assert not taken["syncs"] and not taken["uploads"]
        return {row["name"].partition("::")[2]: row["count"] for row in taken["launches"]}

    return count


def variant(operator: str):
    return importlib.import_module(f"ascend_patch.ops.{operator}.npu")


def test_rms_norm(launches):
    norm = variant("rms_norm").rms_norm
    found = launches(lambda x, weight: norm(x, weight, 1e-5), torch.randn(4, 2, 8), torch.ones(8))
    assert found == {"npu_rms_norm": 1, "npu_rms_norm_backward": 1}


def test_swiglu(launches):
    swiglu = variant("swiglu").swiglu
    assert launches(swiglu, torch.randn(5, 8)) == {"npu_swiglu": 1, "npu_swiglu_backward": 1}
    weighted = launches(swiglu, torch.randn(5, 8).to(BFLOAT16), torch.rand(5))
    assert weighted["npu_swiglu"] == weighted["npu_swiglu_backward"] == 1
    assert sum(weighted.values()) == 7


def test_rotary(launches, npu_device):
    freqs, offsets = torch.randn(6, 1, 1, 8, device=npu_device), torch.tensor([0, 2, 6], device=npu_device)
    rotary = variant("rotary")
    assert launches(lambda t: rotary.apply_rotary(t, freqs), torch.randn(6, 2, 3, 8)) == {"npu_rotary_mul": 2}
    packed = launches(lambda t: rotary.apply_rotary_thd(t, offsets, freqs), torch.randn(6, 3, 8))
    assert packed == {"npu_rotary_mul": 2}


@pytest.mark.parametrize("window", [None, (3, 0)])
def test_attention(launches, npu_device, window):
    offsets, options = torch.tensor([0, 2, 6], device=npu_device), {"scale": 1.0, "causal": True, "window": window}
    attention = variant("attention")
    both = {"npu_fusion_attention": 1, "npu_fusion_attention_grad": 1}
    inputs = [torch.randn(6, 1, heads, 16) for heads in (4, 2, 2)]
    assert launches(lambda *t: attention.attention(*t, **options), *inputs) == both
    packed = [t.squeeze(1) for t in inputs]
    assert launches(lambda *t: attention.attention_thd(*t, offsets, offsets, **options), *packed) == both


def test_cross_entropy(launches, npu_device):
    cross_entropy, target = variant("cross_entropy").cross_entropy, torch.tensor([3, 0], device=npu_device)
    both = {"npu_cross_entropy_loss": 1, "npu_cross_entropy_loss_backward": 1, "clamp": 1}
    assert launches(lambda logits: cross_entropy(logits, target), torch.randn(2, 5)) == both
    narrow = launches(lambda logits: cross_entropy(logits, target), torch.randn(2, 5).to(BFLOAT16))
    assert narrow == both | {"_to_copy": 2}
