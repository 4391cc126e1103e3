"""Attention on the NPU against float64: the head shapes of Mixtral and Mistral at reduced length."""

from functools import partial
from itertools import pairwise

import pytest
import torch

from ascend_patch.ops.attention import reference
from ascend_patch.ops.registry import Unsupported
from tests.unit_tests.ops.attention.parts import check_parts
from tests.unit_tests.ops.npu_checks import check_on_npu

pytestmark = pytest.mark.npu

DTYPES = [torch.float32, torch.bfloat16]
HEADS = {"8x7B": (32, 8, 128), "8x22B": (48, 8, 128)}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def inputs(sq, sk, batch, heads, groups, size, dtype=torch.float32):
    shapes = [(sq, batch, heads, size), (sk, batch, groups, size), (sk, batch, groups, size)]
    return [torch.randn(shape).to(dtype) for shape in shapes]


def check(npu, device, tensors, *, mask=None, **options):
    options = {"scale": tensors[0].shape[-1] ** -0.5, "causal": True} | options
    check_on_npu(
        partial(npu.attention, mask=mask if mask is None else mask.to(device), **options),
        partial(reference.attention, mask=mask, **options),
        tensors,
        device,
        tolerance=TOLERANCES[tensors[0].dtype],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize(("length", "batch"), [(33, 1), (16, 2), (1, 1)])
def test_mixtral_heads(npu, npu_device, dtype, model, length, batch):
    check(npu, npu_device, inputs(length, length, batch, *HEADS[model], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_mistral_window(npu, npu_device, dtype):
    check(npu, npu_device, inputs(37, 37, 1, 32, 8, 128, dtype), window=(7, 0))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, (3, -1), (0, 0), (-1, 2), (2, 5), (100, 100)])
@pytest.mark.parametrize(("sq", "sk"), [(9, 9), (4, 11), (1, 7)])
def test_windows_are_aligned_at_the_end(npu, npu_device, causal, window, sq, sk):
    check(npu, npu_device, inputs(sq, sk, 2, 4, 2, 16), causal=causal, window=window)


def test_queries_before_the_first_key(npu, npu_device):
    """They see nothing and get zeros."""
    check(npu, npu_device, inputs(7, 3, 1, 4, 4, 16))


@pytest.mark.parametrize("shape", [(9, 11), (1, 1, 9, 11), (3, 1, 9, 11), (3, 1, 1, 11), (1, 4, 9, 1), (3, 4, 9, 11)])
def test_an_explicit_mask(npu, npu_device, shape):
    check(npu, npu_device, inputs(9, 11, 3, 4, 2, 16), causal=False, mask=torch.rand(shape) < 0.4)


def test_an_explicit_mask_beside_a_window(npu, npu_device):
    check(npu, npu_device, inputs(9, 9, 1, 2, 2, 16), window=(4, 0), mask=torch.rand(9, 9) < 0.3)


def test_heads_of_a_joint_projection(npu, npu_device):
    """The values are views whose heads are not adjacent."""
    options = {"scale": 0.3, "causal": True}

    def split(attend, joint):
        query, key, value = joint.split([32, 16, 16], dim=-1)
        return attend(query.unflatten(-1, (2, 16)).flatten(2, 3), key, value, **options)

    check_on_npu(
        partial(split, npu.attention), partial(split, reference.attention), [torch.randn(7, 2, 3, 64)], npu_device
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"window": (2, 0)}, {"causal": False}], ids=["causal", "window", "full"])
@pytest.mark.parametrize("rest", [0, 3])
def test_packed(npu, npu_device, dtype, options, rest):
    cu_seqlens = torch.tensor([0, *[5, 1, 0, 9, 2]]).cumsum(0).int()
    tokens = int(cu_seqlens[-1]) + rest
    tensors = [torch.randn(tokens, n, 128).to(dtype) for n in (32, 8, 8)]
    options = {"scale": 0.1, "causal": True} | options
    offsets = cu_seqlens.to(npu_device)
    check_on_npu(
        partial(npu.attention_thd, cu_seqlens_q=offsets, cu_seqlens_kv=offsets, **options),
        partial(reference.attention_thd, cu_seqlens_q=cu_seqlens, cu_seqlens_kv=cu_seqlens, **options),
        tensors,
        npu_device,
        tolerance=TOLERANCES[dtype],
    )


def test_packed_with_more_keys_than_queries(npu, npu_device):
    """Positions are aligned at the end of each sequence."""
    offsets_q, offsets_kv = torch.tensor([0, 2, 5]), torch.tensor([0, 6, 9])
    tensors = [torch.randn(5, 4, 16), torch.randn(9, 2, 16), torch.randn(9, 2, 16)]
    options = {"scale": 0.25, "causal": True}
    check_on_npu(
        lambda *t: npu.attention_thd(*t, offsets_q.to(npu_device), offsets_kv.to(npu_device), **options),
        lambda *t: reference.attention_thd(*t, offsets_q, offsets_kv, **options),
        tensors,
        npu_device,
    )


def test_packed_lengths_are_copied_to_the_host_once(npu, npu_device, monkeypatch):
    offsets = torch.tensor([0, 4, 6], device=npu_device)
    tensors = [torch.randn(6, 2, 16, device=npu_device) for _ in range(3)]
    first = npu.attention_thd(*tensors, offsets, offsets, scale=1.0, causal=True)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: pytest.fail("waited for the device again"))
    assert torch.equal(npu.attention_thd(*tensors, offsets, offsets, scale=1.0, causal=True), first)


@pytest.mark.parametrize("packed", [False, True])
def test_dropout(npu, npu_device, packed):
    """With values of one-hot rows the output is the weights: uniform ones, some dropped, the others scaled up."""
    length, heads, p = 64, 8, 0.3
    zeros = torch.zeros(length, 1, heads, length, device=npu_device)
    one_hot = torch.eye(length, device=npu_device).view(length, 1, 1, length).expand_as(zeros).contiguous()
    value = one_hot.clone().requires_grad_()
    options = {"scale": 1.0, "causal": False, "dropout_p": p}

    def attend(value):
        if not packed:
            return npu.attention(zeros, zeros, value, **options)
        ends = torch.tensor([0, length], device=npu_device)
        return npu.attention_thd(zeros[:, 0], zeros[:, 0], value[:, 0], ends, ends, **options)

    torch.npu.manual_seed(7)
    output = attend(value)
    weights = output.detach().cpu().view(length, heads, length) * length
    kept = weights > 0
    torch.testing.assert_close(weights[kept], torch.full_like(weights[kept], 1 / (1 - p)))
    deviation = (p * (1 - p) / weights.numel()) ** 0.5
    assert abs(1 - kept.float().mean().item() - p) < 5 * deviation
    # The backward pass drops the same weights: the gradient of value j is the sum of its weights over the queries.
    (gradient,) = torch.autograd.grad(output.sum(), value)
    expected = weights.sum(dim=0).t() / length
    torch.testing.assert_close(gradient[:, 0, :, 0].cpu(), expected)
    # Drawn from the generator of the device.
    assert not torch.equal(attend(one_hot), output)
    torch.npu.manual_seed(7)
    assert torch.equal(attend(one_hot), output)


def test_what_the_operator_does_not_take(npu, npu_device):
    def attend(size=16, value_size=None, heads=2, sq=3, dtype=torch.float32, **options):
        query, key, value = inputs(sq, 3, 1, heads, heads, size, dtype)
        value = value[..., :value_size]
        npu.attention(*(t.to(npu_device) for t in (query, key, value)), scale=1.0, causal=True, **options)

    for arguments, reason in [
        ({"dtype": torch.float64}, "float64; npu_fusion_attention takes"),
        ({"value_size": 8}, "keys of size 16 with values of size 8"),
        ({"size": 769}, "head size 769; npu_fusion_attention takes up to 768"),
        ({"heads": 257}, "257 query heads; npu_fusion_attention takes up to 256"),
        ({"dropout_p": 1.0}, "dropout probability of 1"),
        ({"sq": 0}, "an empty sequence"),
    ]:
        with pytest.raises(Unsupported, match=reason):
            attend(**arguments)


@pytest.mark.parametrize(
    ("ends_q", "ends_kv", "reason"),
    [
        ([0, 3, 6], [0, 2, 6], "queries that see no key"),
        ([0, 3, 6], [0, 6, 6], "queries that see no key"),
        ([0, 0], [0, 0], "all empty"),
        (list(range(1026)), list(range(1026)), "more than 1024 packed sequences"),
    ],
)
def test_packed_sequences_that_the_operator_does_not_take(npu, npu_device, ends_q, ends_kv, reason):
    assert all(a <= b for a, b in pairwise(ends_kv))
    query, key = torch.randn(ends_q[-1], 1, 8, device=npu_device), torch.randn(ends_kv[-1], 1, 8, device=npu_device)
    offsets = torch.tensor(ends_q, device=npu_device), torch.tensor(ends_kv, device=npu_device)
    with pytest.raises(Unsupported, match=reason):
        npu.attention_thd(query, key, key, *offsets, scale=1.0, causal=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", HEADS)
def test_parts_of_the_keys_make_up_the_whole(npu, npu_device, dtype, model):
    check_parts(npu, inputs(9, 14, 2, *HEADS[model], dtype), TOLERANCES[dtype], npu_device)
