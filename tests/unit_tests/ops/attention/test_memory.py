"""No mask and no scores of sequence x sequence, whatever hides keys, on the host and on other devices."""

from typing import Any

import pytest
import torch

from ascend_patch.ops.attention import blockwise
from ascend_patch.ops.attention import torch as portable
from tests.unit_tests.ops.checks import LargestTensor

LENGTH, HEADS, GROUPS, SIZE = 8192, 2, 1, 4
SQUARE = LENGTH**2
OPTIONS = {
    "window": {"causal": True, "window": (37, 0)},
    "wide window": {"causal": True, "window": (4095, 0)},
    "two sides": {"causal": False, "window": (20, 30)},
    "dropout": {"causal": True, "window": (100, 0), "dropout_p": 0.1},
    "causal": {"causal": True},
    "full": {"causal": False},
}


@pytest.fixture(params=["host", "device"])
def block_scores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many scores a block has at most; those of a device are computed here on the host."""
    scores = blockwise._BLOCK_SCORES if request.param == "host" else blockwise._DEVICE_BLOCK_SCORES
    monkeypatch.setattr(blockwise, "_BLOCK_SCORES", scores)
    return scores


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_whole_sequences(block_scores: int, options: dict) -> None:
    shapes = [(LENGTH, 1, HEADS, SIZE), (LENGTH, 1, GROUPS, SIZE), (LENGTH, 1, GROUPS, SIZE)]
    tensors = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    with LargestTensor() as largest:
        portable.attention(*tensors, scale=0.5, **options).float().sum().backward()
    assert LENGTH * HEADS * SIZE < largest.numel <= block_scores < SQUARE


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("queries", [LENGTH, LENGTH // 2, 1])
@pytest.mark.parametrize("there", [True, False])
def test_kernels_of_pytorch(monkeypatch: pytest.MonkeyPatch, options: dict, queries: int, there: bool) -> None:
    """A kernel of PyTorch where nothing but causality hides keys, if there is one: never its fallback, nor a mask."""
    called = []

    def kernel(query: torch.Tensor, *rest: torch.Tensor, is_causal: bool, attn_mask: None = None, **others: Any):
        called.append("causal kernel" if is_causal else "kernel")
        return query

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    monkeypatch.setattr(portable, "blockwise_attention", lambda *args: called.append("blocks"))
    monkeypatch.setattr(portable, "_has_kernel", lambda device, call: there)
    query, key, value = (torch.empty(n, 1, 2, SIZE) for n in (queries, LENGTH, LENGTH))
    portable.attention(query, key, value, scale=0.5, **options)
    taken = there and "window" not in options
    if taken and options["causal"] and queries > 1:
        assert called == (["causal kernel"] if queries == LENGTH else ["blocks"])
    else:
        assert called == (["kernel"] if taken else ["blocks"])
