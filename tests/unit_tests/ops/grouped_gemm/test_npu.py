"""Grouped GEMM on the NPU against float64: the experts of Mixtral, uneven and empty groups, gradients in place."""

from functools import partial

import pytest
import torch

from ascend_patch.ops.grouped_gemm import reference
from ascend_patch.ops.registry import Unsupported
from tests.unit_tests.ops.checks import TOLERANCES, relative_error, results_and_gradients
from tests.unit_tests.ops.grouped_gemm.passes import check_passes
from tests.unit_tests.ops.npu_checks import check_on_npu

pytestmark = pytest.mark.npu

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
COUNTS = {
    "uneven": [3, 0, 7, 1],
    "all to one": [0, 0, 9, 0],
    "one token": [0, 1, 0, 0],
    "no tokens": [0, 0, 0, 0],
    "one expert": [6],
}
HIDDEN, FFN = {"8x7B": 4096, "8x22B": 6144}, {"8x7B": 14336, "8x22B": 16384}


def operands(counts, n, k, dtype):
    return [torch.randn(sum(counts), k).to(dtype), torch.randn(len(counts), n, k).to(dtype)]


def check(npu, counts, inputs, device):
    check_on_npu(
        partial(npu.grouped_gemm, tokens_per_expert=counts),
        partial(reference.grouped_gemm, tokens_per_expert=counts),
        inputs,
        device,
    )


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize(("n", "k"), [(32, 16), (3, 5), (2, 2)])
def test_product_and_gradients(npu, npu_device, dtype, counts, n, k):
    check(npu, counts, operands(counts, n, k, dtype), npu_device)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize(("n", "k"), [(32, 16), (3, 5)])
def test_passes_by_themselves(npu, npu_device, dtype, counts, n, k):
    check_passes(npu, *(t.to(npu_device) for t in operands(counts, n, k, dtype)), counts)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("model", ["8x7B", "8x22B"])
@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_all_experts_of_mixtral_at_a_sixteenth(npu, npu_device, dtype, model, layer):
    hidden, ffn = HIDDEN[model] // 16, FFN[model] // 16
    n, k = (2 * ffn, hidden) if layer == "fc1" else (hidden, ffn)
    counts = torch.bincount(torch.randint(8, (24,)), minlength=8).tolist()
    check(npu, counts, operands(counts, n, k, dtype), npu_device)


@pytest.mark.parametrize("model", ["8x7B", "8x22B"])
@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_one_expert_of_mixtral_at_tensor_parallel_size_8(npu, npu_device, model, layer):
    hidden, ffn = HIDDEN[model], FFN[model] // 8
    n, k = (2 * ffn, hidden) if layer == "fc1" else (hidden, ffn)
    check(npu, [5], operands([5], n, k, BFLOAT16), npu_device)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_non_contiguous_operands(npu, npu_device, dtype):
    counts = [2, 0, 6]
    check_on_npu(
        lambda x, weight: npu.grouped_gemm(x.t(), weight.transpose(1, 2), counts).t(),
        lambda x, weight: reference.grouped_gemm(x.t(), weight.transpose(1, 2), counts).t(),
        [torch.randn(16, 8).to(dtype), torch.randn(3, 16, 10).to(dtype)],
        npu_device,
    )


def test_an_expanded_gradient(npu, npu_device):
    """`sum()` hands back a gradient without strides. Positive numbers, so that nothing cancels in the sum."""
    counts = [2, 3]
    check_on_npu(
        lambda x, weight: npu.grouped_gemm(x, weight, counts).sum(),
        lambda x, weight: reference.grouped_gemm(x, weight, counts).sum(),
        [operand.abs() for operand in operands(counts, 6, 4, FLOAT32)],
        npu_device,
    )


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("accumulated_dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_weight_gradient_is_added_where_asked(npu, npu_device, dtype, accumulated_dtype, counts):
    """Twice, as two micro-batches do."""
    x, weight = operands(counts, 12, 10, dtype)
    grad_y = torch.randn(sum(counts), 12).to(dtype)
    _, (expected_x, expected_weight) = results_and_gradients(
        partial(reference.grouped_gemm, tokens_per_expert=counts), (x.double(), weight.double()), grad_y.double()
    )
    before = torch.randn(weight.shape).to(accumulated_dtype)
    accumulated = before.to(npu_device)
    x, weight = x.to(npu_device).requires_grad_(), weight.to(npu_device).requires_grad_()
    for _ in range(2):
        x.grad = None
        npu.grouped_gemm(x, weight, counts, accumulated).backward(grad_y.to(npu_device))
    assert weight.grad is None
    assert relative_error(x.grad.cpu(), expected_x) <= TOLERANCES[dtype]
    tolerance = max(TOLERANCES[dtype], TOLERANCES[accumulated_dtype])
    assert relative_error(accumulated.cpu(), before + 2 * expected_weight) <= tolerance


@pytest.mark.parametrize(("tokens", "n", "k"), [(13, 7, 5), (1, 64, 32), (24, 1536, 1024), (0, 3, 2)])
def test_weight_gradient_of_a_layer_without_groups(npu, npu_device, tokens, n, k):
    """Also where `T` is not its memory's first dimension, as that of a sequence parallel gradient may be."""
    x, grad_y, before = torch.randn(tokens, k).bfloat16(), torch.randn(n, tokens).bfloat16().t(), torch.randn(n, k)
    found = before.to(npu_device)
    npu.add_weight_gradient(x.to(npu_device), grad_y.to(npu_device), found)
    expected = before.double() + grad_y.double().t() @ x.double()
    assert relative_error(found.cpu(), expected) <= TOLERANCES[FLOAT32]


@pytest.mark.parametrize(("dtype", "accumulated_dtype"), [(FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16)])
def test_weight_gradient_that_the_operator_does_not_sum(npu, npu_device, dtype, accumulated_dtype):
    x, grad_y = torch.randn(9, 5).to(dtype), torch.randn(9, 7).to(dtype)
    found = torch.zeros(7, 5, dtype=accumulated_dtype, device=npu_device)
    npu.add_weight_gradient(x.to(npu_device), grad_y.to(npu_device), found)
    assert relative_error(found.cpu(), grad_y.double().t() @ x.double()) <= TOLERANCES[dtype]


def test_frozen_weight_leaves_what_is_accumulated(npu, npu_device):
    x, weight = (t.to(npu_device) for t in operands([2, 3], 6, 4, BFLOAT16))
    accumulated = torch.zeros(weight.shape, device=npu_device)
    npu.grouped_gemm(x.requires_grad_(), weight, [2, 3], accumulated).sum().backward()
    assert x.grad.any() and not accumulated.any()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 4, 8), torch.float64, "torch.float64; npu_grouped_matmul takes bfloat16"),
        ((1, 65536, 2), FLOAT32, r"\(1, 65536, 2\); npu_grouped_matmul takes sizes of 2 to 65535"),
        ((1, 2, 65536), FLOAT32, "sizes of 2 to 65535"),
        ((1, 1, 8), FLOAT32, "sizes of 2 to 65535"),
        ((1, 8, 1), FLOAT32, "sizes of 2 to 65535"),
        ((1025, 2, 2), FLOAT32, "1025 experts; npu_grouped_matmul takes up to 1024"),
    ],
)
def test_what_the_operator_does_not_take(npu, npu_device, shape, dtype, message):
    weight = torch.zeros(shape, dtype=dtype, device=npu_device)
    x = torch.zeros(1, shape[2], dtype=dtype, device=npu_device)
    with pytest.raises(Unsupported, match=message):
        npu.grouped_gemm(x, weight, [1] + [0] * (shape[0] - 1))
