"""Permutation by a routing map against Megatron-LM's way of writing it, in float64."""

import pytest
import torch

from ascend_sim.kernels.moe_permute_routing_map import (
    npu_moe_token_permute_with_routing_map as permute,
)
from ascend_sim.kernels.moe_permute_routing_map import (
    npu_moe_token_permute_with_routing_map_grad as permute_grad,
)
from ascend_sim.kernels.moe_unpermute_routing_map import (
    npu_moe_token_unpermute_with_routing_map as unpermute,
)
from ascend_sim.kernels.moe_unpermute_routing_map import (
    npu_moe_token_unpermute_with_routing_map_grad as unpermute_grad,
)
from tests.unit_tests.ascend_sim.kernels.checks import (
    BFLOAT16,
    FLOAT32,
    assert_close,
    check_on_device,
    refuses,
)

DTYPES = pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
PADDED = pytest.mark.parametrize("padded", [False, True])
TOKENS, EXPERTS, TOPK, CAPACITY, HIDDEN = 11, 5, 2, 4, 6


def routing_map(tokens=TOKENS):
    chosen = torch.zeros(tokens, EXPERTS, dtype=torch.bool)
    return chosen.scatter_(1, torch.rand(tokens, EXPERTS).topk(TOPK).indices, True)


def rows_of(chosen, padded):
    """(token, expert) of every row, expert by expert."""
    rows = []
    for expert in range(EXPERTS):
        own = [(t, expert) for t in range(len(chosen)) if chosen[t, expert]]
        others = [(t, expert) for t in range(len(chosen)) if not chosen[t, expert]]
        rows += (own + others)[:CAPACITY] if padded else own
    return rows


def there(tokens, probs, chosen, padded):
    rows = rows_of(chosen, padded)
    return torch.stack([tokens[t] for t, _ in rows]), torch.stack([probs[t, e] for t, e in rows])


def back(rows, probs, chosen, padded):
    tokens = [rows.new_zeros(HIDDEN) for _ in range(len(chosen))]
    for row, (token, expert) in enumerate(rows_of(chosen, padded)):
        tokens[token] = tokens[token] + rows[row] * probs[token, expert]
    return torch.stack(tokens)


def count(padded):
    return EXPERTS * CAPACITY if padded else TOKENS * TOPK


@DTYPES
@PADDED
@pytest.mark.parametrize("map_dtype", [torch.bool, torch.int8])
def test_there(dtype, padded, map_dtype):
    chosen = routing_map()
    tokens, probs = torch.randn(TOKENS, HIDDEN).to(dtype), torch.rand(TOKENS, EXPERTS).to(dtype)
    leaves = [tokens.double().requires_grad_(), probs.double().requires_grad_()]
    expected = there(*leaves, chosen, padded)
    rows, row_probs, indices = permute(tokens, chosen.to(map_dtype), probs, count(padded), padded)
    assert_close([rows, row_probs], expected)
    assert indices.dtype == torch.int32
    gradients = [torch.randn_like(value) for value in expected]
    torch.autograd.backward(expected, gradients)
    given = [gradient.to(dtype) for gradient in gradients]
    grads = permute_grad(given[0], given[1], indices, chosen, EXPERTS, TOKENS, padded)
    assert_close(grads, [leaf.grad for leaf in leaves])


@DTYPES
@PADDED
def test_and_back(dtype, padded):
    chosen = routing_map()
    tokens, probs = torch.randn(TOKENS, HIDDEN).to(dtype), torch.rand(TOKENS, EXPERTS).to(dtype)
    rows, _, indices = permute(tokens, chosen, None, count(padded), padded)
    rows = torch.randn_like(rows)
    leaves = [rows.double().requires_grad_(), probs.double().requires_grad_()]
    expected = back(*leaves, chosen, padded)
    found, out_index, token_id, row_probs = unpermute(rows, indices, [TOKENS, HIDDEN], probs, chosen, padded)
    assert_close(found, expected)
    assert_close(row_probs, there(tokens, probs, chosen, padded)[1].double())
    gradient = torch.randn(TOKENS, HIDDEN).to(dtype)
    expected.backward(gradient.double())
    first, second = (out_index, token_id) if padded else (indices, indices)
    grads = unpermute_grad(gradient, first, second, chosen, rows, probs, padded, [TOKENS, HIDDEN])
    assert_close(grads, [leaf.grad for leaf in leaves])


@PADDED
def test_without_probabilities(padded):
    chosen, tokens = routing_map(), torch.randn(TOKENS, HIDDEN)
    ones = torch.ones(TOKENS, EXPERTS)
    rows, none, indices = permute(tokens, chosen, None, count(padded), padded)
    assert none is None
    assert_close(rows, there(tokens.double(), ones, chosen, padded)[0])
    found, out_index, token_id, none = unpermute(rows, indices, [TOKENS, HIDDEN], None, chosen, padded)
    assert none is None
    assert_close(found, back(rows.double(), ones, chosen, padded))
    first, second = (out_index, token_id) if padded else (indices, indices)
    grad, none = unpermute_grad(tokens, first, second, chosen, None, None, padded, [TOKENS, HIDDEN])
    assert none is None
    assert_close(grad, there(tokens.double(), ones, chosen, padded)[0])
    assert permute_grad(rows, None, indices, chosen, EXPERTS, TOKENS, padded)[1] is None


def test_no_number_of_rows_means_one_expert_a_token():
    chosen = torch.eye(4, dtype=torch.bool)
    rows, _, indices = permute(torch.randn(4, 3), chosen, None, None, False)
    assert rows.shape == (4, 3)
    assert torch.equal(indices, torch.arange(4).int())


def test_results_that_the_device_leaves_undefined_are_no_indices():
    chosen, tokens = routing_map(), torch.randn(TOKENS, HIDDEN)
    rows, _, indices = permute(tokens, chosen, None, count(False), False)
    _, out_index, token_id, _ = unpermute(rows, indices, [TOKENS, HIDDEN], None, chosen, False)
    assert (out_index == -1).all()
    assert (token_id == -1).all()


@pytest.mark.simulator
@DTYPES
@PADDED
def test_gradients_on_device(torch_npu, npu_device, dtype, padded):
    chosen = routing_map()
    on_device = chosen.to(npu_device)

    def operator(tokens, probs):
        rows, row_probs, indices = torch_npu.npu_moe_token_permute_with_routing_map(
            tokens, on_device, probs=probs, num_out_tokens=count(padded), drop_and_pad=padded
        )
        found = torch_npu.npu_moe_token_unpermute_with_routing_map(
            rows, indices, [TOKENS, HIDDEN], probs=probs, routing_map=on_device, drop_and_pad=padded
        )
        return [found, row_probs]

    def formula(tokens, probs):
        rows, row_probs = there(tokens, probs, chosen, padded)
        return [back(rows, probs, chosen, padded), row_probs]

    inputs = [torch.randn(TOKENS, HIDDEN).to(dtype), torch.rand(TOKENS, EXPERTS).to(dtype)]
    check_on_device(operator, formula, inputs, npu_device)


@pytest.mark.simulator
def test_without_autograd_on_device(torch_npu, npu_device):
    chosen, tokens = routing_map(), torch.randn(TOKENS, HIDDEN)
    with torch.inference_mode():
        on_device = chosen.to(npu_device)
        rows, _, indices = torch_npu.npu_moe_token_permute_with_routing_map(
            tokens.to(npu_device), on_device, num_out_tokens=TOKENS * TOPK
        )
        found = torch_npu.npu_moe_token_unpermute_with_routing_map(
            rows, indices, [TOKENS, HIDDEN], routing_map=on_device
        )
    assert_close(found, TOPK * tokens.double())


def test_constraints_of_the_permutation():
    chosen, tokens, probs = routing_map(), torch.randn(TOKENS, HIDDEN), torch.rand(TOKENS, EXPERTS)
    uneven = chosen.clone()
    uneven[0] = True

    def there_with(tokens=tokens, chosen=chosen, probs=probs, rows=TOKENS * TOPK, padded=False):
        return permute(tokens, chosen, probs, rows, padded)

    for message, change in {
        "tokens is float64": {"tokens": tokens.double()},
        "routing_map is int64, allowed: bool, int8": {"chosen": chosen.long()},
        "routing_map has 10 rows, needed: 11 tokens": {"chosen": chosen[:10]},
        "one data type is needed, got tokens bfloat16, probs float32": {"tokens": tokens.bfloat16()},
        r"probs has shape \(11, 2\)": {"probs": probs[:, :2]},
        "num_out_tokens is 21, needed: a multiple of 11 tokens": {"rows": 21},
        "num_out_tokens is 56, allowed: 0 to 55": {"rows": 56},
        "num_out_tokens is 21, needed: a multiple of 5 experts": {"rows": 21, "padded": True},
        "1 tokens have another number of experts than": {"chosen": uneven},
        "topk is 512, allowed: less than 512": {
            "tokens": tokens[:1],
            "chosen": torch.ones(1, 600).bool(),
            "probs": None,
            "rows": 512,
        },
        "routing_map has shape .*, allowed: less than 16777215 either way": {
            "tokens": tokens[:1],
            "chosen": torch.ones(1, 1).bool().expand(1, 16_777_215),
        },
    }.items():
        with refuses("npu_moe_token_permute_with_routing_map", message):
            there_with(**change)
    with refuses("npu_moe_token_permute_with_routing_map_grad", "the device leaves the result unset"):
        permute_grad(tokens[:0], None, torch.zeros(0).int(), chosen, EXPERTS, TOKENS, False)


def test_constraints_of_the_way_back():
    chosen, tokens, probs = routing_map(), torch.randn(TOKENS, HIDDEN), torch.rand(TOKENS, EXPERTS)
    rows, _, indices = permute(tokens, chosen, None, TOKENS * TOPK, False)

    def back_with(rows=rows, indices=indices, shape=(TOKENS, HIDDEN), probs=probs, chosen=chosen):
        return unpermute(rows, indices, list(shape), probs, chosen, False)

    for message, change in {
        "permuted_tokens is float64": {"rows": rows.double()},
        "sorted_indices is int64, allowed: int32": {"indices": indices.long()},
        r"sorted_indices has shape \(21,\)": {"indices": indices[:21]},
        "sorted_indices holds values": {"indices": indices + 1},
        r"restore_shape is \[11, 7\], needed: \[tokens, 6\]": {"shape": (TOKENS, 7)},
        "one data type is needed": {"probs": probs.bfloat16()},
        "probs has 5 rows, needed: 11 tokens": {"probs": probs[:5]},
        "routing_map is None": {"chosen": None},
        "the device leaves the result unset": {
            "rows": rows[:0],
            "indices": indices[:0],
            "chosen": torch.zeros_like(chosen),
        },
    }.items():
        with refuses("_npu_moe_token_unpermute_with_routing_map", message):
            back_with(**change)
    for message, arguments in {
        "permuted_tokens is None, with probs it is needed": (chosen, None, probs),
        "routing_map is None, with probs it is needed": (None, rows, probs),
        "one data type is needed": (chosen, rows, probs.bfloat16()),
    }.items():
        with refuses("npu_moe_token_unpermute_with_routing_map_grad", message):
            unpermute_grad(tokens, indices, indices, *arguments, False, [TOKENS, HIDDEN])
