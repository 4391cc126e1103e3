"""npu_moe_token_permute and npu_moe_token_unpermute against loops over tokens in float64."""

import pytest
import torch

from ascend_sim.kernels.moe_permute import (
    npu_moe_token_permute,
    npu_moe_token_permute_grad,
    npu_moe_token_unpermute,
    npu_moe_token_unpermute_grad,
)
from tests.unit_tests.ascend_sim.kernels.checks import (
    BFLOAT16,
    FLOAT32,
    assert_close,
    check_on_device,
    not_modelled,
    refuses,
)

DTYPES = pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
TOPK = pytest.mark.parametrize("topk", [1, 2, 3])


def permuted(tokens, indices, count=None):
    """Copies sorted by expert, in the order of tokens within an expert; and the row of every (token, choice)."""
    copies = [(int(e), t, c) for t, row in enumerate(indices.view(len(tokens), -1)) for c, e in enumerate(row)]
    order = sorted(copies)
    rows = {(t, c): row for row, (_, t, c) in enumerate(order)}
    picked = [t for _, t, _ in order][:count]
    return tokens[picked], torch.tensor([rows[t, c] for _, t, c in sorted(copies, key=lambda x: x[1:])])


def unpermuted(rows, sorted_indices, probs):
    topk = 1 if probs is None else probs.shape[1]
    out = []
    for token, chosen in enumerate(sorted_indices.view(-1, topk)):
        parts = [
            rows[int(row)] * (1 if probs is None else probs[token, choice])
            for choice, row in enumerate(chosen)
            if row < len(rows)
        ]
        out.append(sum(parts, start=rows.new_zeros(rows.shape[1])))
    return torch.stack(out)


@DTYPES
@TOPK
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_permute(dtype, topk, index_dtype):
    tokens, indices = torch.randn(13, 5).to(dtype), torch.randint(0, 4, (13, topk), dtype=index_dtype)
    found, rows = npu_moe_token_permute(tokens, indices, None, False)
    expected, expected_rows = permuted(tokens, indices)
    assert torch.equal(found, expected)
    assert rows.dtype == torch.int32
    assert torch.equal(rows.long(), expected_rows)


@pytest.mark.parametrize(("given", "kept"), [(None, 20), (0, 20), (7, 7), (50, 20), (-3, 17)])
def test_rows_that_are_cut_off(given, kept):
    tokens, indices = torch.randn(10, 3), torch.randint(0, 4, (10, 2))
    found, rows = npu_moe_token_permute(tokens, indices, given, False)
    assert torch.equal(found, permuted(tokens, indices, kept)[0])
    assert rows.shape == (20,)
    gradient = npu_moe_token_permute_grad(tokens, found, indices, rows, False)
    leaf = tokens.double().requires_grad_()
    permuted(leaf, indices, kept)[0].backward(found.double())
    assert_close(gradient, leaf.grad)


def test_one_dimension_of_indices_means_one_expert():
    tokens, indices = torch.randn(6, 3), torch.randint(0, 3, (6,))
    both = [npu_moe_token_permute(tokens, index, None, False) for index in (indices, indices.unsqueeze(1))]
    for one, two in zip(*both, strict=True):
        assert torch.equal(one, two)


@DTYPES
@TOPK
@pytest.mark.parametrize("probs_dtype", [FLOAT32, BFLOAT16])
def test_unpermute(dtype, topk, probs_dtype):
    indices = torch.randint(0, 5, (11, topk))
    probs, gradient = torch.rand(11, topk).to(probs_dtype), torch.randn(11, 6).to(dtype)
    rows, sorted_indices = npu_moe_token_permute(torch.randn(11, 6).to(dtype), indices, None, False)
    leaves = [rows.double().requires_grad_(), probs.double().requires_grad_()]
    expected = unpermuted(leaves[0], sorted_indices, leaves[1])
    expected.backward(gradient.double())
    assert_close(npu_moe_token_unpermute(rows, sorted_indices, probs, False), expected)
    grads = npu_moe_token_unpermute_grad(rows, gradient, sorted_indices, probs, False)
    for grad, leaf, tensor in zip(grads, leaves, (rows, probs), strict=True):
        assert grad.dtype == tensor.dtype
        assert_close(grad, leaf.grad)


def test_unpermute_without_probabilities():
    rows, order, gradient = torch.randn(9, 4), torch.randperm(9).int(), torch.randn(9, 4)
    assert torch.equal(npu_moe_token_unpermute(rows, order, None, False), rows[order.long()])
    grad, none = npu_moe_token_unpermute_grad(rows, gradient, order, None, False)
    assert none is None
    assert torch.equal(grad[order.long()], gradient)


def test_rows_with_probability_zero_are_not_read():
    rows = torch.tensor([[1.0, 2.0], [float("inf"), float("nan")]])
    found = npu_moe_token_unpermute(rows, torch.tensor([0, 1]).int(), torch.tensor([[0.5, 0.0]]), False)
    assert torch.equal(found, torch.tensor([[0.5, 1.0]]))


@pytest.mark.simulator
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("kept", [None, 17])
def test_gradients_on_device(torch_npu, npu_device, dtype, kept):
    indices = torch.randint(0, 4, (12, 2))
    on_device = indices.to(npu_device)

    def operator(tokens, probs):
        rows, order = torch_npu.npu_moe_token_permute(tokens, on_device, kept)
        return torch_npu.npu_moe_token_unpermute(rows, order, probs)

    def formula(tokens, probs):
        rows, order = permuted(tokens, indices, kept)
        return unpermuted(rows, order, probs)

    check_on_device(operator, formula, [torch.randn(12, 6).to(dtype), torch.rand(12, 2)], npu_device)


def test_constraints_of_the_permutation():
    tokens, indices = torch.randn(4, 3), torch.randint(0, 2, (4, 2))

    def permute(tokens=tokens, indices=indices, count=None, padded=False):
        return npu_moe_token_permute(tokens, indices, count, padded)

    for message, change in {
        "tokens is float64": {"tokens": tokens.double()},
        "tokens has 3 dimensions": {"tokens": tokens[None]},
        "indices is int16": {"indices": indices.short()},
        "indices has 3 dimensions": {"indices": indices[None]},
        "indices has 3 rows for 4 tokens": {"indices": indices[:3]},
        "topk is 513, allowed: at most 512": {"indices": torch.zeros(4, 513, dtype=torch.long)},
        "indices holds values from -1": {"indices": torch.full_like(indices, -1)},
        "num_out_tokens is -9, allowed: at least -8": {"count": -9},
    }.items():
        with refuses("npu_moe_token_permute", message):
            permute(**change)
    with not_modelled("npu_moe_token_permute", "padded_mode=True"):
        permute(padded=True)


def test_constraints_of_the_way_back():
    rows, order, probs = torch.randn(8, 3), torch.randperm(8).int(), torch.rand(4, 2)

    def unpermute(rows=rows, order=order, probs=probs):
        return npu_moe_token_unpermute(rows, order, probs, False)

    for message, change in {
        "permuted_tokens is float64": {"rows": rows.double()},
        "sorted_indices is int64, allowed: int32": {"order": order.long()},
        "sorted_indices has 2 dimensions": {"order": order.view(4, 2)},
        "sorted_indices holds values": {"order": order + 1},
        "permuted_tokens has 9 rows for 8 sorted_indices": {"rows": torch.randn(9, 3)},
        "probs has 1 dimensions": {"probs": probs[0]},
        "probs is float64": {"probs": probs.double()},
        r"probs has shape \(3, 2\) for 8 sorted_indices": {"probs": probs[:3]},
        "topk is 0": {"probs": torch.rand(8, 0)},
    }.items():
        with refuses("npu_moe_token_unpermute", message):
            unpermute(**change)
    with not_modelled("npu_moe_token_unpermute", "padded_mode=True"):
        npu_moe_token_unpermute(rows, order, probs, True)
    with refuses("npu_moe_token_unpermute_grad", r"grad_unpermuted_tokens has shape \(8, 3\), needed: \(4, 3\)"):
        npu_moe_token_unpermute_grad(rows, rows, order, probs, False)
    with refuses("npu_moe_token_permute_grad", r"sorted_indices has shape \(8,\), needed: \(4,\)"):
        npu_moe_token_permute_grad(torch.randn(4, 3), rows, torch.zeros(4, 1).long(), order, False)
