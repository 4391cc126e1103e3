"""Scaling many tensors, against upstream's own function."""

import pytest
import torch

from ascend_patch.features.optimizer import local_multi_tensor_scale


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bit_for_bit_like_upstream(in_place: bool, dtype: torch.dtype) -> None:
    from megatron.core import utils

    original = getattr(utils.local_multi_tensor_scale, "__wrapped__", utils.local_multi_tensor_scale)
    sources = [torch.randn(7, 3), torch.randn(5), torch.randn(0, 4)]
    results = []
    for function in (original, local_multi_tensor_scale):
        inputs = [source.clone() for source in sources]
        outputs = inputs if in_place else [torch.zeros_like(source, dtype=dtype) for source in sources]
        function(2048, torch.zeros(1, dtype=torch.int), [inputs, outputs], 0.37)
        results.append(outputs)
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_nothing_is_allocated() -> None:
    """Which is what the patch is for."""
    gradient = torch.randn(1000)
    with torch.profiler.profile(profile_memory=True) as profiler:
        local_multi_tensor_scale(2048, None, [[gradient], [gradient]], 0.5)
    scaled = [event for event in profiler.events() if event.name == "aten::mul"]
    assert len(scaled) == 1
    assert all(event.cpu_memory_usage < gradient.nbytes for event in profiler.events())


def test_lists_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        local_multi_tensor_scale(2048, None, [[torch.ones(1), torch.ones(1)], [torch.ones(1)]], 0.5)
