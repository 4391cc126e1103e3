"""Scaling and measuring many tensors, against upstream's own functions."""

import pytest
import torch

from ascend_patch.features.optimizer import local_multi_tensor_l2_norm, local_multi_tensor_scale


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
    assert len([event for event in profiler.events() if event.name == "aten::_foreach_mul_"]) == 1
    assert all(event.cpu_memory_usage < gradient.nbytes for event in profiler.events())


def test_lists_of_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        local_multi_tensor_scale(2048, None, [[torch.ones(1), torch.ones(1)], [torch.ones(1)]], 0.5)


def test_norm_like_upstream() -> None:
    from megatron.core import utils

    original = getattr(utils.local_multi_tensor_l2_norm, "__wrapped__", utils.local_multi_tensor_l2_norm)
    assert original.__module__ == "megatron.core.utils"
    lists = [[torch.randn(7, 3), torch.zeros(0, 2), torch.randn(5)], [torch.randn(2)]]
    norm, per_tensor = local_multi_tensor_l2_norm(2048, torch.zeros(1, dtype=torch.int), lists, False)
    assert norm.shape == (1,) and per_tensor is None
    expected = torch.cat([t.flatten() for tensors in lists for t in tensors]).double().norm()
    torch.testing.assert_close(norm[0].double(), expected, rtol=1e-6, atol=0.0)


def test_norm_of_many_numbers() -> None:
    gradients = [torch.randn(3_000_000) * 1e-3, torch.randn(1)]
    norm, _ = local_multi_tensor_l2_norm(2048, None, [gradients], False)
    torch.testing.assert_close(norm[0].double(), torch.cat(gradients).double().norm(), rtol=1e-6, atol=0.0)


@pytest.mark.npu
def test_on_the_device(npu_device) -> None:
    gradients = [torch.randn(7, 3), torch.randn(5)]
    on_npu = [t.to(npu_device) for t in gradients]
    local_multi_tensor_scale(2048, None, [on_npu, on_npu], 0.5)
    norm, _ = local_multi_tensor_l2_norm(2048, None, [on_npu], False)
    assert norm.device == npu_device
    torch.testing.assert_close(norm.cpu(), torch.cat([t.flatten() for t in gradients]).norm().reshape(1) * 0.5)
