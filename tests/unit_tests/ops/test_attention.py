"""Attention: every mask and grouping of each variant against float64, and upstream's own masked softmax."""

from functools import partial

import pytest
import torch
from megatron.core.fusions.fused_softmax import FusedScaleMaskSoftmax
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.utils import attention_mask_func

from ascend_patch.ops import attention as package
from ascend_patch.ops.attention import blockwise, reference
from ascend_patch.ops.attention import torch as fast
from tests.unit_tests.ops.attention.parts import check_parts
from tests.unit_tests.ops.checks import (
    check_against_float64,
    check_deterministic_backward,
    relative_error,
    results_and_gradients,
)

VARIANTS = [reference, fast]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    """Small blocks, so that the small inputs of these tests are cut into several."""
    monkeypatch.setattr(blockwise, "_BLOCK_SCORES", 100)
    monkeypatch.setattr(blockwise, "_LEAST_QUERIES", 3)


def inputs(sq, sk, b=2, heads=4, groups=2, hn=8, hv=8, dtype=torch.float32):
    query = torch.randn(sq, b, heads, hn).to(dtype)
    return query, torch.randn(sk, b, groups, hn).to(dtype), torch.randn(sk, b, groups, hv).to(dtype)


def check(variant, tensors, **options):
    options = {"scale": 0.3, "causal": False} | options
    check_against_float64(
        partial(variant.attention, **options),
        partial(reference.attention, **options),
        *tensors,
        tolerance=TOLERANCES[tensors[0].dtype],
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, (4, 0), (3, 2), (-1, 1), (2, -1), (0, 0)])
def test_masks(variant, dtype, causal, window):
    check(variant, inputs(11, 11, dtype=dtype), causal=causal, window=window)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("sq", "sk"), [(1, 1), (1, 9), (5, 13), (13, 5), (0, 4), (7, 1)])
@pytest.mark.parametrize("window", [None, (3, 1)])
def test_lengths(variant, causal, sq, sk, window):
    """With more queries than keys the first causal queries see nothing."""
    check(variant, inputs(sq, sk), causal=causal, window=window)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (6, 2), (3, 1)])
def test_grouped_queries(variant, heads, groups):
    check(variant, inputs(9, 9, heads=heads, groups=groups), causal=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_of_another_head_size(variant):
    check(variant, inputs(9, 9, hv=5), causal=True)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 1, 9, 7), (1, 1, 9, 7), (2, 4, 9, 7), (9, 7)])
@pytest.mark.parametrize("causal", [True, False])
def test_explicit_mask(variant, shape, causal):
    mask = torch.rand(shape) < 0.4
    mask[..., 2, :] = True  # a query that sees nothing
    check(variant, inputs(9, 7), causal=causal, mask=mask)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_query_that_sees_nothing_gets_zeros(variant):
    query, key, value = inputs(3, 2)
    output = variant.attention(query, key, value, scale=1.0, causal=True)
    assert torch.count_nonzero(output[0]) == 0
    assert torch.count_nonzero(output[1]) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_strided_inputs_as_upstream_splits_them(variant):
    """Key and value are slices of one [s, b, groups, (r + 2) * hn] projection."""
    mixed = torch.randn(9, 2, 2, 4 * 8)
    query, key, value = mixed.split([16, 8, 8], dim=-1)
    check(variant, (query.reshape(9, 2, 4, 8), key, value), causal=True)


def test_gradcheck():
    tensors = [t.requires_grad_() for t in inputs(7, 8, b=1, hn=3, hv=2, dtype=torch.float64)]
    attend = partial(fast.attention, scale=0.7, causal=True, window=(3, 0))
    assert torch.autograd.gradcheck(attend, tensors)


def test_backward_is_deterministic():
    check_deterministic_backward(partial(fast.attention, scale=0.3, causal=True), *inputs(40, 40))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, (4, 0)])
def test_dropout_keeps_the_mean(causal, window):
    """Averaged over many draws, dropped weights, scaled up, give the result without dropout."""
    query, key, value = (t.expand(-1, 4000, -1, -1) for t in inputs(6, 6, b=1))
    attend = partial(fast.attention, query, key, value, scale=0.3, causal=causal, window=window)
    mean = attend(dropout_p=0.25).mean(dim=1)
    assert relative_error(mean, attend()[:, 0]) <= 0.1


def test_dropout_draws_from_the_current_generator():
    attend = partial(fast.attention, *inputs(6, 6), scale=0.3, causal=True, dropout_p=0.5)
    torch.manual_seed(1)
    first, other = attend(), attend()
    torch.manual_seed(1)
    assert torch.equal(attend(), first)
    assert not torch.equal(other, first)


@pytest.mark.parametrize("options", [{"causal": True}, {"causal": False}, {"causal": True, "window": (4, 0)}])
def test_dropout_drops_the_same_in_the_backward_pass(options):
    """With values of one-hot rows the output is the weights, and the gradient of value j their sum over the queries."""
    query, key, _ = inputs(20, 20, b=1, groups=4)
    value = torch.eye(20).view(20, 1, 1, 20).repeat(1, 1, 4, 1).requires_grad_()
    attend = partial(fast.attention, query, key, value, scale=0.3, **options)
    output = attend(dropout_p=0.5)
    (gradient,) = torch.autograd.grad(output.sum(), value)
    weights = output.view(20, 4, 20)
    kept = weights > 0
    assert 0 < kept.sum() < torch.count_nonzero(attend())
    torch.testing.assert_close(weights[kept], 2 * attend().view_as(weights)[kept])
    torch.testing.assert_close(gradient[:, 0, :, 0], weights.sum(dim=0).t())


def test_gradcheck_of_dropout():
    tensors = [t.requires_grad_() for t in inputs(7, 8, b=1, hn=3, hv=2, dtype=torch.float64)]

    def attend(*tensors):
        torch.manual_seed(3)
        return fast.attention(*tensors, scale=0.7, causal=True, window=(3, 0), dropout_p=0.4)

    assert torch.autograd.gradcheck(attend, tensors)


def test_everything_dropped():
    output, gradients = results_and_gradients(
        partial(fast.attention, scale=0.3, causal=True, dropout_p=1.0), inputs(5, 5), torch.randn(5, 2, 32)
    )
    assert not any(torch.count_nonzero(t) for t in (output, *gradients))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("window", [None, (2, 0)])
def test_packed_sequences(variant, window):
    ends = torch.tensor([0, 4, 4, 5, 11], dtype=torch.int32)
    query, key, value = (t[:, 0] for t in inputs(13, 13, b=1))
    options = {"scale": 0.3, "causal": True, "window": window}
    check_against_float64(
        lambda q, k, v: variant.attention_thd(q, k, v, ends, ends, **options),
        lambda q, k, v: reference.attention_thd(q, k, v, ends, ends, **options),
        query,
        key,
        value,
    )
    output = package.attention_thd(query, key, value, ends, ends, **options)
    alone = reference.attention(*(t[5:11].unsqueeze(1) for t in (query, key, value)), **options)
    torch.testing.assert_close(output[5:11], alone.squeeze(1))
    assert torch.count_nonzero(output[11:]) == 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("window", [None, (3, 0)])
def test_as_upstream(variant, window, monkeypatch):
    """Upstream's own scaling, masking and softmax between two plain products."""
    # Upstream makes its masks on the device "cuda".
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *a, **k: ones(*a, **{**k, "device": "cpu"}))
    query, key, value = inputs(10, 10, heads=4, groups=4)
    softmax = FusedScaleMaskSoftmax(False, False, AttnMaskType.causal, False, attention_mask_func, True, None, window)
    scores = torch.einsum("qbnh,kbnh->bnqk", query, key) * 0.3
    expected = torch.einsum("bnqk,kbnh->qbnh", softmax(scores, None), value).flatten(2)
    found = variant.attention(query, key, value, scale=0.3, causal=True, window=window)
    torch.testing.assert_close(found, expected)


def test_bad_shapes():
    query, key, value = inputs(4, 4)
    attend = partial(package.attention, scale=1.0, causal=True)
    with pytest.raises(ValueError, match="must be a multiple of key heads"):
        attend(query[:, :, :3], key, value)
    with pytest.raises(ValueError, match="batch sizes differ"):
        attend(query[:, :1], key, value)
    with pytest.raises(ValueError, match="may differ in head_dim only"):
        attend(query, key, value[:2])
    with pytest.raises(ValueError, match="must have the same head_dim"):
        attend(query[..., :4], key, value)
    with pytest.raises(ValueError, match=r"must be \[s, b, heads, head_dim\]"):
        attend(query[0], key, value)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (6, 2), (5, 1)])
def test_parts_of_the_keys_make_up_the_whole(variant, dtype, heads, groups):
    check_parts(variant, inputs(9, 14, heads=heads, groups=groups, dtype=dtype), TOLERANCES[dtype])


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_with_values_of_another_head_size(variant):
    check_parts(variant, inputs(7, 12, b=3, hv=5), TOLERANCES[torch.float32])


def test_bad_parts():
    query, key, value = inputs(4, 3)
    with pytest.raises(ValueError, match="every query must see a key"):
        package.attention_forward(query, key, value, scale=1.0, causal=True)
    output, lse = package.attention_forward(query, key, value, scale=1.0, causal=False)
    backward = partial(package.attention_backward, scale=1.0, causal=False)
    with pytest.raises(ValueError, match=r"lse has shape \(2, 4, 3\); it must be \(2, 4, 4\)"):
        backward(output, query, key, value, output, lse[..., :3])
    with pytest.raises(ValueError, match="grad_output has shape"):
        backward(output[..., :3], query, key, value, output, lse)
