"""npu_fusion_attention against attention written out in float64: layouts, masks, grouped queries, packed sequences."""

import math

import pytest
import torch

from ascend_sim.kernels import attention_core
from ascend_sim.kernels.attention import npu_fusion_attention, npu_fusion_attention_grad
from tests.unit_tests.ascend_sim.kernels.checks import (
    BFLOAT16,
    FLOAT32,
    assert_close,
    check_on_device,
    not_modelled,
    refuses,
)

FAR = 2**31 - 1
SIZE = 16
FORWARD = {
    "atten_mask": None,
    "scale": 1.0,
    "keep_prob": 1.0,
    "pre_tockens": FAR,
    "next_tockens": FAR,
    "inner_precise": 0,
    "actual_seq_qlen": None,
    "actual_seq_kvlen": None,
    "sparse_mode": 0,
    "softmax_layout": "",
    "seed": 0,
    "offset": 0,
}


def forward(query, key, value, heads, layout, **changes):
    return npu_fusion_attention(query, key, value, heads, layout, **(FORWARD | {"scale": SIZE**-0.5} | changes))


def backward(query, key, value, dy, heads, layout, results, **changes):
    output, maximum, total, _, seed, offset, numels = results
    arguments = FORWARD | {"scale": SIZE**-0.5} | changes
    arguments |= {"seed": seed, "offset": offset, "numels": numels, "scale_value": arguments.pop("scale")}
    arguments |= {"softmax_max": maximum, "softmax_sum": total, "attention_in": output}
    return npu_fusion_attention_grad(query, key, value, dy, heads, layout, **arguments)[:3]


def triangle():
    return torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def to_layout(tensor, layout):
    """From [batch, heads, length, size]."""
    if layout == "BNSD":
        return tensor
    if layout == "BSND":
        return tensor.transpose(1, 2)
    joined = tensor.transpose(1, 2).flatten(2)
    return joined if layout == "BSH" else joined.transpose(0, 1)


def formula(query, key, value, hidden=None, keep=None):
    """Attention of [batch, heads, length, size]; `hidden` and the factors `keep` broadcast to the scores."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.mT * SIZE**-0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    weights = torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True)).nan_to_num(0.0)
    return (weights if keep is None else weights * keep) @ value


def inputs(batch=2, heads=4, groups=2, queries=7, keys=7, value_size=SIZE, dtype=FLOAT32):
    shapes = ((batch, heads, queries, SIZE), (batch, groups, keys, SIZE), (batch, groups, keys, value_size))
    return [torch.randn(shape).to(dtype) for shape in shapes]


def check(tensors, layout, hidden=None, **changes):
    """Forward and backward in `layout` against the formula; tensors in [batch, heads, length, size]."""
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    expected = to_layout(formula(*leaves, hidden), layout)
    arguments = [to_layout(tensor, layout) for tensor in tensors]
    heads = tensors[0].shape[1]
    results = forward(*arguments, heads, layout, **changes)
    assert_close(results[0], expected)
    dy = torch.randn(expected.shape).to(tensors[0].dtype)
    expected.backward(dy.double())
    grads = backward(*arguments, dy, heads, layout, results, **changes)
    assert_close(grads, [to_layout(leaf.grad, layout) for leaf in leaves])
    return results


@pytest.mark.parametrize("layout", ["BNSD", "BSND", "BSH", "SBH"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_layouts_and_grouped_queries(layout, groups, dtype):
    tensors = inputs(groups=groups, dtype=dtype)
    causal = torch.ones(7, 7, dtype=torch.bool).triu(1)
    results = check(tensors, layout, causal, atten_mask=triangle(), sparse_mode=2)
    assert results[1].shape == results[2].shape == (2, 4, 7, 8)
    assert results[1].dtype == results[2].dtype == FLOAT32


@pytest.mark.parametrize("layout", ["BNSD", "BSH"])
def test_softmax_results(layout):
    query, key, value = inputs(groups=4)
    _, maximum, total, *_ = forward(*(to_layout(t, layout) for t in (query, key, value)), 4, layout)
    scores = query.double() @ key.double().mT * SIZE**-0.5
    assert_close(maximum, scores.amax(-1, keepdim=True).expand(-1, -1, -1, 8))
    assert_close(total, (scores - scores.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True).expand(-1, -1, -1, 8))


def diagonals(queries, keys):
    return torch.arange(keys) - torch.arange(queries).unsqueeze(1)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (5, 9), (9, 5), (1, 8)])
def test_sparse_modes(queries, keys):
    tensors, distance, shift = inputs(queries=queries, keys=keys), diagonals(queries, keys), keys - queries
    check(tensors, "BNSD", distance > 0, atten_mask=triangle(), sparse_mode=2)
    check(tensors, "BNSD", distance > shift, atten_mask=triangle(), sparse_mode=3)
    band = (distance > shift + 1) | (distance < shift - 3)
    wide = {"pre_tockens": 3, "next_tockens": 1, "inner_precise": 2}
    check(tensors, "BNSD", band, atten_mask=triangle(), sparse_mode=4, **wide)
    band = (distance > 1) | (distance < -3)
    check(tensors, "BNSD", band, atten_mask=band, sparse_mode=0, **wide)
    check(tensors, "BNSD", None)
    check(tensors, "BNSD", band, atten_mask=band, sparse_mode=1, inner_precise=2)


@pytest.mark.parametrize("leading", [(2, 4), (2, 1), (1, 1), ()])
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_masks_of_full_size(leading, mode, dtype):
    hidden = torch.rand(*leading, 7, 7) < 0.5
    hidden[..., 0] = False
    check(inputs(), "BSND", hidden, atten_mask=hidden.to(dtype), sparse_mode=mode)


def test_more_queries_than_a_block(monkeypatch):
    monkeypatch.setattr(attention_core, "_BLOCK", 4)
    distance = diagonals(11, 11)
    check(inputs(queries=11, keys=11), "BSH", distance > 0, atten_mask=triangle(), sparse_mode=2)
    band = (distance > 0) | (distance < -5)
    arguments = {"atten_mask": triangle(), "sparse_mode": 4, "pre_tockens": 5, "next_tockens": 0}
    check(inputs(queries=11, keys=11), "SBH", band, **arguments)
    check(inputs(queries=11, keys=11), "SBH", band.expand(2, 4, -1, -1), atten_mask=band, sparse_mode=1)


def test_longer_than_the_compressed_mask():
    tensors = [tensor[:1, :1] for tensor in inputs(queries=2100, keys=2100, groups=1)]
    distance = diagonals(2100, 2100)
    band = (distance > 0) | (distance < -64)
    arguments = {"atten_mask": triangle(), "sparse_mode": 4, "pre_tockens": 64, "next_tockens": 0}
    check(tensors, "BNSD", band, **arguments)


def test_a_smaller_head_size_of_the_value():
    check(inputs(value_size=8), "BSH")
    check(inputs(value_size=8), "BNSD")


def packed(lengths, heads, dtype):
    return torch.randn(sum(lengths), heads, SIZE).to(dtype)


def packed_formula(query, key, value, queries, keys, hidden):
    """One sequence after the other; `hidden` from their lengths."""
    parts = []
    for q, k, v, m, n in zip(query.split(queries), key.split(keys), value.split(keys), queries, keys, strict=True):
        one = formula(*(t.transpose(0, 1).unsqueeze(0) for t in (q, k, v)), hidden(m, n))
        parts.append(one[0].transpose(0, 1))
    return torch.cat(parts)


def totals(lengths):
    return torch.tensor(lengths).cumsum(0).tolist()


@pytest.mark.parametrize(("queries", "keys"), [([3, 5, 1], [3, 5, 1]), ([2, 0, 4], [6, 0, 4]), ([9], [9])])
@pytest.mark.parametrize("softmax_layout", ["", "TND"])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_packed(queries, keys, softmax_layout, dtype):
    tensors = [packed(queries, 4, dtype), packed(keys, 2, dtype), packed(keys, 2, dtype)]
    lengths = {"actual_seq_qlen": totals(queries), "actual_seq_kvlen": totals(keys), "softmax_layout": softmax_layout}
    for hidden, arguments in (
        (lambda m, n: diagonals(m, n) > n - m, {"sparse_mode": 3, "atten_mask": triangle()}),
        (lambda m, n: None, {}),
        (
            lambda m, n: (diagonals(m, n) > n - m) | (diagonals(m, n) < n - m - 2),
            {"sparse_mode": 4, "atten_mask": triangle(), "pre_tockens": 2, "next_tockens": 0},
        ),
    ):
        leaves = [tensor.double().requires_grad_() for tensor in tensors]
        expected = packed_formula(*leaves, queries, keys, hidden)
        results = forward(*tensors, 4, "TND", **lengths, **arguments)
        assert results[1].shape == results[2].shape == (sum(queries), 4, 8)
        assert_close(results[0], expected)
        dy = torch.randn(expected.shape).to(dtype)
        expected.backward(dy.double())
        grads = backward(*tensors, dy, 4, "TND", results, **lengths, **arguments)
        assert_close(grads, [leaf.grad for leaf in leaves])


def test_packed_with_a_mask_of_the_longest_sequence():
    lengths = [3, 5]
    tensors = [packed(lengths, heads, FLOAT32) for heads in (4, 2, 2)]
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    arguments = {"actual_seq_qlen": [3, 8], "actual_seq_kvlen": [3, 8]}
    found = forward(*tensors, 4, "TND", atten_mask=hidden, sparse_mode=1, **arguments)[0]
    exact = [tensor.double() for tensor in tensors]
    assert_close(found, packed_formula(*exact, lengths, lengths, lambda m, n: hidden[:m, :n]))


def test_packed_softmax_results_have_two_orders():
    tensors = [packed([2, 3], heads, FLOAT32) for heads in (4, 2, 2)]
    lengths = {"actual_seq_qlen": [2, 5], "actual_seq_kvlen": [2, 5]}
    by_head = forward(*tensors, 4, "TND", **lengths)[1]
    by_token = forward(*tensors, 4, "TND", softmax_layout="TND", **lengths)[1]
    assert torch.equal(by_head.view(4, 5, 8).transpose(0, 1), by_token)


@pytest.mark.parametrize("layout", ["BNSD", "SBH"])
def test_dropout(layout):
    """The gradient sees the mask of the forward pass: with the identity as value the output is the mask."""
    query, key, _ = inputs(queries=6, keys=SIZE, groups=4)
    identity = torch.eye(SIZE).expand(2, 4, -1, -1).contiguous()
    tensors = [to_layout(tensor, layout) for tensor in (query, key, identity)]
    results = forward(*tensors, 4, layout, keep_prob=0.7)
    assert results[4] != 0
    assert results[6] == 2 * 4 * 6 * SIZE
    weights = formula(query.double(), key.double(), identity.double())
    output = results[0] if layout == "BNSD" else results[0].view(6, 2, 4, SIZE).permute(1, 2, 0, 3)
    keep = (output != 0).double() / 0.7
    assert 0.5 < float((keep > 0).double().mean()) < 0.9
    assert_close(output, weights * keep)
    leaves = [tensor.double().requires_grad_() for tensor in (query, key, identity)]
    expected = to_layout(formula(*leaves, keep=keep), layout)
    dy = torch.randn(expected.shape)
    expected.backward(dy.double())
    grads = backward(*tensors, dy, 4, layout, results, keep_prob=0.7)
    assert_close(grads, [to_layout(leaf.grad, layout) for leaf in leaves])


def test_dropout_depends_on_seed_and_offset():
    tensors = inputs()
    first, again, other, later = (
        forward(*tensors, 4, "BNSD", keep_prob=0.5, seed=seed, offset=offset)[0]
        for seed, offset in ((7, 0), (7, 0), (8, 0), (7, 4))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, later)


@pytest.mark.simulator
@pytest.mark.parametrize("layout", ["BNSD", "BSND", "BSH", "SBH"])
def test_gradients_on_device(torch_npu, npu_device, layout):
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
    mask = triangle().to(npu_device)
    check_on_device(
        lambda *tensors: torch_npu.npu_fusion_attention(
            *(to_layout(tensor, layout) for tensor in tensors),
            4,
            layout,
            atten_mask=mask,
            scale=SIZE**-0.5,
            sparse_mode=3,
        )[0],
        lambda *tensors: to_layout(formula(*tensors, causal), layout),
        inputs(queries=6, keys=6),
        npu_device,
    )


@pytest.mark.simulator
def test_packed_gradients_on_device(torch_npu, npu_device):
    lengths = [4, 1, 3]
    mask = triangle().to(npu_device)
    check_on_device(
        lambda *tensors: torch_npu.npu_fusion_attention(
            *tensors,
            4,
            "TND",
            atten_mask=mask,
            scale=SIZE**-0.5,
            sparse_mode=3,
            actual_seq_qlen=totals(lengths),
            actual_seq_kvlen=totals(lengths),
        )[0],
        lambda *tensors: packed_formula(*tensors, lengths, lengths, lambda m, n: diagonals(m, n) > 0),
        [packed(lengths, heads, FLOAT32) for heads in (4, 2, 2)],
        npu_device,
    )


@pytest.mark.simulator
def test_dropout_on_device_follows_the_npu_generator(torch_npu, npu_device):
    query = torch.randn(1, 2, 8, SIZE, device=npu_device, requires_grad=True)
    state = torch.npu.get_rng_state()
    first, *_, seed, offset, _ = torch_npu.npu_fusion_attention(query, query, query, 2, "BNSD", keep_prob=0.5)
    second, *_, next_offset, _ = torch_npu.npu_fusion_attention(query, query, query, 2, "BNSD", keep_prob=0.5)
    torch.npu.set_rng_state(state)
    again = torch_npu.npu_fusion_attention(query, query, query, 2, "BNSD", keep_prob=0.5)[0]
    assert seed == torch.npu.initial_seed()
    assert next_offset > offset
    assert not torch.equal(first.cpu(), second.cpu())
    assert torch.equal(first.cpu(), again.cpu())
    first.sum().backward()
    assert torch.isfinite(query.grad.cpu()).all()


def test_constraints_on_shapes():
    query, key, value = inputs()
    flat = [to_layout(tensor, "BSH") for tensor in (query, key, value)]
    for message, arguments in {
        "input_layout is 'NTD', allowed: 'BSH'": (query, key, value, 4, "NTD"),
        "query has 4 dimensions .*, allowed: 3": (query, key, value, 4, "BSH"),
        "query is float64": (*inputs(dtype=torch.float64), 4, "BNSD"),
        "one data type is needed": (query, key.half(), value, 4, "BNSD"),
        "head_num is 0, allowed: 1 to 256": (query, key, value, 0, "BNSD"),
        "head_num is 257": (query, key, value, 257, "BNSD"),
        "query has 4 heads, needed: head_num 2": (query, key, value, 2, "BNSD"),
        "query has hidden size 64, needed: a multiple of head_num 3": (*flat, 3, "BSH"),
        "key has hidden size 24, needed: a multiple of head size 16": (flat[0], flat[1][..., :24], flat[2], 4, "BSH"),
        "value has hidden size 31": (flat[0], flat[1], flat[2][..., :31], 4, "BSH"),
        "key has head size 8, needed: that of query, 16": (query, key[..., :8], value, 4, "BNSD"),
        r"head sizes are 16 \(query, key\) and 32 \(value\)": (*inputs(value_size=32), 4, "BNSD"),
        "query has 4 heads and key 3, needed: a multiple": (*inputs(groups=3), 4, "BNSD"),
        "query has 2 batches and key 1": (query, key[:1], value[:1], 4, "BNSD"),
        "allowed to differ: the last dimension": (query, key, value[:, :, :5], 4, "BNSD"),
        "key is empty": (query, key[:, :, :0], value[:, :, :0], 4, "BNSD"),
    }.items():
        with refuses("npu_fusion_attention", message):
            forward(*arguments)
    wide = torch.randn(1, 1, 2, 769)
    with refuses("npu_fusion_attention", "head sizes are 769 .*, allowed: at most 768"):
        forward(wide, wide, wide, 1, "BNSD")
    with refuses("npu_fusion_attention", "keep_prob is 0.0, allowed: above 0 up to 1"):
        forward(query, key, value, 4, "BNSD", keep_prob=0.0)
    with refuses("npu_fusion_attention", "softmax_layout is 'TND', allowed: ''"):
        forward(query, key, value, 4, "BNSD", softmax_layout="TND")
    with refuses("npu_fusion_attention", "they belong to TND"):
        forward(query, key, value, 4, "BNSD", actual_seq_qlen=[7])


def test_constraints_on_masks():
    tensors, hidden = inputs(), torch.ones(7, 7, dtype=torch.bool).triu(1)
    for message, change in {
        "sparse_mode is 9": {"sparse_mode": 9},
        "inner_precise is 3, allowed: 0, 1, 2": {"inner_precise": 3},
        "atten_mask is None with sparse_mode 2: the device would attend to everything": {"sparse_mode": 2},
        "are given without atten_mask: the device would attend to everything": {"next_tockens": 0},
        "atten_mask is float32, allowed: bool, uint8": {"atten_mask": hidden.float()},
        r"atten_mask has shape \(7, 7\), needed: \(2048, 2048\)": {"atten_mask": hidden, "sparse_mode": 3},
        "is not the upper triangle": {"atten_mask": triangle().mT.contiguous(), "sparse_mode": 2},
        r"atten_mask has shape \(6, 7\), needed": {"atten_mask": hidden[:6], "sparse_mode": 1},
        r"atten_mask has shape \(4, 7, 7\)": {"atten_mask": hidden.expand(4, 7, 7), "sparse_mode": 1},
        "leave no band": {"atten_mask": triangle(), "sparse_mode": 4, "pre_tockens": 1, "next_tockens": -2},
        "leaves positions open outside of pre_tockens": {"atten_mask": hidden, "pre_tockens": 2},
        "sees no key, which this mode does not allow": {"atten_mask": torch.ones_like(hidden), "sparse_mode": 1},
    }.items():
        with refuses("npu_fusion_attention", message):
            forward(*tensors, 4, "BNSD", **change)
    for mode in (5, 6, 7, 8):
        with not_modelled("npu_fusion_attention", f"sparse_mode={mode}"):
            forward(*tensors, 4, "BNSD", sparse_mode=mode, atten_mask=hidden)


def test_constraints_on_packed_sequences():
    tensors = [packed([3, 5], heads, FLOAT32) for heads in (4, 2, 2)]
    good = {"actual_seq_qlen": [3, 8], "actual_seq_kvlen": [3, 8]}
    for message, change in {
        "are needed with layout TND": {"actual_seq_qlen": None},
        "actual_seq_qlen has 1 and actual_seq_kvlen 2 sequences": {"actual_seq_qlen": [8]},
        "actual_seq_qlen falls, running totals are needed": {"actual_seq_qlen": [9, 8]},
        "actual_seq_kvlen ends at 5, needed: the 8 tokens": {"actual_seq_kvlen": [3, 5]},
        "4 queries and 3 keys, sparse_mode 3 needs": {
            "actual_seq_qlen": [4, 8],
            "sparse_mode": 3,
            "atten_mask": triangle(),
        },
        r"atten_mask has shape \(8, 8\), needed: \(5, 5\)": {
            "sparse_mode": 1,
            "atten_mask": torch.zeros(8, 8, dtype=torch.bool),
        },
        "softmax_layout is 'BSND', allowed: '', 'TND'": {"softmax_layout": "BSND"},
    }.items():
        with refuses("npu_fusion_attention", message):
            forward(*tensors, 4, "TND", **(good | change))
    with refuses("npu_fusion_attention", "allowed to differ: the last dimension"):
        forward(tensors[0], tensors[1], tensors[2][:7], 4, "TND", **good)
    many = {"actual_seq_qlen": [1] * 2048 + [8], "actual_seq_kvlen": [1] * 2048 + [8]}
    with refuses("npu_fusion_attention", "at most 2048"):
        forward(*tensors, 4, "TND", **many)


def test_constraints_on_the_gradient():
    tensors = inputs()
    results = forward(*tensors, 4, "BNSD", keep_prob=0.9)
    dy = torch.randn_like(results[0])
    for message, changed, gradient in (
        ("attention_in, softmax_max and softmax_sum .* are needed", [None, *results[1:]], dy),
        (r"softmax_max has shape \(2, 4, 7, 1\)", [results[0], results[1][..., :1], *results[2:]], dy),
        ("softmax_sum is float16", [*results[:2], results[2].half(), *results[3:]], dy),
        (r"dy has shape \(1, 4, 7, 16\)", results, dy[:1]),
        ("one data type is needed", results, dy.half()),
        ("numels is 1, needed with dropout: the 392", [*results[:6], 1], dy),
    ):
        with refuses("npu_fusion_attention_grad", message):
            backward(*tensors, gradient, 4, "BNSD", changed, keep_prob=0.9)
