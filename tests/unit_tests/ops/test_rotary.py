"""Rotary embedding: each variant against float64 and against upstream's unfused code."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils
from torch import Tensor

from ascend_patch.ops import blocks
from ascend_patch.ops import rotary as package
from ascend_patch.ops.rotary import reference
from ascend_patch.ops.rotary import torch as fast
from tests.unit_tests.ops.checks import check_against_float64, check_deterministic_backward

VARIANTS = [reference, fast]


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "ELEMENTS_ON_HOST", 50)


def angles(positions: int, r: int, interleaved: bool = False) -> Tensor:
    """As Megatron's RotaryEmbedding makes them."""
    inverse = 1.0 / 100.0 ** (torch.arange(0, r, 2) / r)
    half = torch.outer(torch.arange(positions, dtype=torch.float32), inverse)
    whole = half.repeat_interleave(2, dim=-1) if interleaved else torch.cat([half, half], dim=-1)
    return whole.view(positions, 1, 1, r)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("shape", "r"), [((7, 2, 3, 8), 8), ((5, 1, 2, 10), 6), ((1, 1, 1, 2), 2), ((0, 2, 3, 4), 4)])
def test_value_and_gradient(variant, dtype, interleaved, shape, r):
    freqs = angles(9, r, interleaved)
    check_against_float64(
        lambda t: variant.apply_rotary(t, freqs, interleaved),
        lambda t: reference.apply_rotary(t, freqs, interleaved),
        torch.randn(shape).to(dtype),
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_arbitrary_angles(variant, interleaved):
    """Also where the two angles of a pair differ."""
    freqs = torch.randn(6, 1, 1, 4)
    check_against_float64(
        lambda t: variant.apply_rotary(t, freqs, interleaved),
        lambda t: reference.apply_rotary(t, freqs, interleaved),
        torch.randn(6, 2, 3, 5),
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_as_upstream(variant, interleaved):
    t, freqs = torch.randn(7, 2, 3, 10), angles(7, 8, interleaved)
    expected = rope_utils._apply_rotary_pos_emb_bshd(t, freqs, rotary_interleaved=interleaved)
    torch.testing.assert_close(variant.apply_rotary(t, freqs, interleaved), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("cp_size", "cp_rank"), [(1, 0), (2, 0), (2, 1), (3, 1)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_packed_sequences_are_as_upstream(variant, cp_size, cp_rank, interleaved):
    lengths = torch.tensor([2, 1, 3]) * 2 * cp_size
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
    t, freqs = torch.randn(int(lengths.sum()) // cp_size, 3, 6), angles(40, 6, interleaved)
    group = SimpleNamespace(size=lambda: cp_size, rank=lambda: cp_rank)
    expected = rope_utils._apply_rotary_pos_emb_thd(
        t, cu_seqlens, freqs, rotary_interleaved=interleaved, cp_group=group
    )
    found = variant.apply_rotary_thd(t, cu_seqlens, freqs, cp_size, cp_rank, interleaved)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_gradient(variant):
    cu_seqlens, freqs = torch.tensor([0, 3, 3, 8]), angles(5, 4)
    check_against_float64(
        lambda t: variant.apply_rotary_thd(t, cu_seqlens, freqs),
        lambda t: reference.apply_rotary_thd(t, cu_seqlens, freqs),
        torch.randn(8, 2, 6),
    )


def test_non_contiguous_input():
    freqs = angles(5, 4)
    check_against_float64(
        lambda t: fast.apply_rotary(t, freqs),
        lambda t: reference.apply_rotary(t, freqs),
        torch.randn(6, 2, 3, 5).permute(3, 1, 2, 0),
    )


def test_gradcheck():
    t = torch.randn(3, 1, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partial(fast.apply_rotary, freqs=torch.randn(3, 1, 1, 4)), (t,))


def test_cosines_are_made_once(monkeypatch):
    made = []
    make = fast._cos_and_sines
    monkeypatch.setattr(fast, "_cos_and_sines", lambda *args: made.append(args) or make(*args))
    freqs, t = angles(5, 4), torch.randn(5, 1, 2, 4, requires_grad=True)
    with torch.inference_mode():
        fast.apply_rotary(t, freqs)
    fast.apply_rotary(t, freqs).sum().backward()
    assert len(made) == 1
    fast.apply_rotary(t[:3], freqs)
    freqs.mul_(2)
    torch.testing.assert_close(fast.apply_rotary(t, freqs), reference.apply_rotary(t, freqs))
    assert len(made) == 3


def test_backward_is_deterministic():
    check_deterministic_backward(partial(fast.apply_rotary, freqs=angles(9, 8)), torch.randn(9, 2, 3, 8))


@pytest.mark.parametrize("shape", [(3, 1, 1, 4), (5, 2, 1, 4), (5, 1, 1, 10), (5, 1, 1, 3), (5, 4)])
def test_bad_angles(shape):
    with pytest.raises(ValueError, match=r"freqs has shape .*s >= 5 and r even and at most 8"):
        package.apply_rotary(torch.randn(5, 2, 3, 8), torch.randn(shape))


def test_bad_packing():
    t, freqs = torch.randn(5, 2, 4), angles(10, 4)
    with pytest.raises(ValueError, match="length must be a multiple of 4"):
        fast.apply_rotary_thd(t, torch.tensor([0, 10]), freqs, cp_size=2, cp_rank=0)
    with pytest.raises(ValueError, match=r"cp_rank must be in \[0, 2\), found 2"):
        package.apply_rotary_thd(t, torch.tensor([0, 10]), freqs, cp_size=2, cp_rank=2)
    with pytest.raises(ValueError, match=r"add up to 9 .* 5 tokens"):
        package.apply_rotary_thd(t, torch.tensor([0, 4, 9]), freqs)
    with pytest.raises(ValueError, match="11 positions"):
        package.apply_rotary_thd(torch.randn(11, 2, 4), torch.tensor([0, 11]), freqs)
