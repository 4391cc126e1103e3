"""Grouped GEMM: each variant against float64, with empty experts, and the number of kernels it launches."""

from collections import Counter
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ascend_patch.ops import grouped_gemm as package
from ascend_patch.ops.grouped_gemm import by_expert, reference
from ascend_patch.ops.grouped_gemm import torch as fast
from tests.unit_tests.ops.checks import (
    TOLERANCES,
    check_against_float64,
    check_deterministic_backward,
    relative_error,
    results_and_gradients,
)
from tests.unit_tests.ops.grouped_gemm.passes import check_passes

VARIANTS = [reference, fast]
COUNTS = [[3, 0, 7, 1], [0, 0, 0, 5], [0, 0, 0, 0], [1], [4, 4]]


def operands(counts, k, n, dtype=torch.float32):
    return torch.randn(sum(counts), k).to(dtype), torch.randn(len(counts), n, k).to(dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("k", "n"), [(16, 32), (5, 3)], ids=["aligned", "odd"])
def test_product_and_gradients(variant, dtype, counts, k, n):
    check_against_float64(
        partial(variant.grouped_gemm, tokens_per_expert=counts),
        partial(reference.grouped_gemm, tokens_per_expert=counts),
        *operands(counts, k, n, dtype),
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("k", "n"), [(16, 32), (5, 3)], ids=["aligned", "odd"])
def test_passes_by_themselves(variant, dtype, counts, k, n):
    check_passes(variant, *operands(counts, k, n, dtype), counts)


def test_non_contiguous_operands():
    counts = [2, 0, 6]
    x, weight = torch.randn(16, 8).t(), torch.randn(3, 16, 32).transpose(1, 2)
    assert not x.is_contiguous() and not weight.is_contiguous()
    check_against_float64(
        partial(fast.grouped_gemm, tokens_per_expert=counts),
        partial(reference.grouped_gemm, tokens_per_expert=counts),
        x,
        weight,
    )


@pytest.mark.parametrize("reduce", [torch.sum, torch.mean])
def test_expanded_gradient(reduce):
    """The gradient of a sum has stride 0, which torch._grouped_mm refuses."""
    counts = [3, 5]
    check_against_float64(
        lambda x, w: reduce(fast.grouped_gemm(x, w, counts)),
        lambda x, w: reduce(reference.grouped_gemm(x, w, counts)),
        *(t.abs() for t in operands(counts, 16, 32)),  # the error is relative to the sum
    )


def test_gradcheck():
    counts = [2, 0, 3]
    x, weight = operands(counts, 4, 3, torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, w: fast.grouped_gemm(x, w, counts), (x.requires_grad_(), weight.requires_grad_())
    )


def test_backward_is_deterministic():
    counts = [9, 0, 23]
    check_deterministic_backward(
        partial(fast.grouped_gemm, tokens_per_expert=counts), *operands(counts, 32, 16, torch.bfloat16)
    )


class CountOperators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


def test_frozen_weight_costs_no_weight_gradient():
    counts = [4, 4]
    x, weight = operands(counts, 16, 32)
    with CountOperators() as operators:
        fast.grouped_gemm(x.requires_grad_(), weight, counts).sum().backward()
    assert operators.counts["mm"] == 2 * len(counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "counts", [[33, 17, 0, 70], [0, 300, 1, 0], [100], [16, 15, 14], [20, 5, 3], [5, 260, 0]], ids=str
)
def test_rows_of_other_experts_and_zeros_in_a_product(dtype, counts):
    """bfloat16 on the host: not a trace of them in the result, not even of what is no number."""
    x, weight = operands(counts, 24, 16, dtype)
    check_against_float64(
        partial(fast.grouped_gemm, tokens_per_expert=counts),
        partial(reference.grouped_gemm, tokens_per_expert=counts),
        x,
        weight,
    )
    last = max(expert for expert, count in enumerate(counts) if count)
    before = sum(counts[:last])
    expected = fast.grouped_gemm(x, weight, counts)[:before]
    x[before:] = float("nan")
    assert torch.equal(fast.grouped_gemm(x, weight, counts)[:before], expected)


def test_products_have_few_heights():
    x = torch.empty(0, dtype=torch.bfloat16)
    heights = {rows: by_expert._height(rows, x) for rows in range(5000)}
    assert all(rows <= height <= max(rows + 3, rows * 17 / 16) for rows, height in heights.items())
    assert len(set(heights.values())) < 140 and heights[0] == 0
    assert by_expert._height(4999, x.float()) == 4999


def test_counts_as_a_tensor():
    x, weight = operands([2, 1], 16, 8)
    as_list = package.grouped_gemm(x, weight, [2, 1])
    assert torch.equal(package.grouped_gemm(x, weight, torch.tensor([2, 1])), as_list)


@pytest.mark.parametrize("counts", [[2, 2], [3], [4, -1], [1, 1, 1]])
def test_counts_that_do_not_fit(counts):
    with pytest.raises(ValueError, match="tokens_per_expert is"):
        package.grouped_gemm(*operands([2, 1], 16, 8), counts)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"allowed are \[T, K\] and \[E, N, K\]"):
        package.grouped_gemm(torch.randn(3, 8), torch.randn(1, 4, 9), [3])


def test_dtypes_that_differ():
    with pytest.raises(ValueError, match=r"x is torch.float32, weight is torch.bfloat16"):
        package.grouped_gemm(torch.randn(3, 8), torch.randn(1, 4, 8).bfloat16(), [3])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("accumulated_dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_is_added_where_asked(variant, counts, accumulated_dtype):
    x, weight = operands(counts, 16, 32)
    grad_y = torch.randn(sum(counts), 32)
    _, (expected_x, expected_weight) = results_and_gradients(
        partial(reference.grouped_gemm, tokens_per_expert=counts), (x, weight), grad_y
    )
    accumulated = torch.randn(weight.shape).to(accumulated_dtype)
    expected = accumulated.clone().add_(expected_weight)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    variant.grouped_gemm(x, weight, counts, accumulated).backward(grad_y)
    assert weight.grad is None
    assert relative_error(x.grad, expected_x) <= 1e-5
    assert relative_error(accumulated, expected) <= TOLERANCES[accumulated_dtype]


def test_weight_gradient_that_does_not_fit():
    x, weight = operands([2, 1], 16, 8)
    with pytest.raises(ValueError, match=r"it must be contiguous and of the shape of weight, \(2, 8, 16\)"):
        package.grouped_gemm(x, weight, [2, 1], torch.zeros(2, 16, 8).transpose(1, 2))
    with pytest.raises(ValueError, match="weight_gradient has shape"):
        package.grouped_gemm(x, weight, [2, 1], torch.zeros(16, 16))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("accumulated_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 13])
def test_weight_gradient_of_a_layer_without_groups(variant, dtype, accumulated_dtype, tokens):
    x, grad_y = torch.randn(tokens, 5).to(dtype), torch.randn(tokens, 7).to(dtype)
    found = torch.randn(7, 5).to(accumulated_dtype)
    expected = found.double() + grad_y.double().t() @ x.double()
    variant.add_weight_gradient(x, grad_y, found)
    assert relative_error(found, expected) <= max(TOLERANCES[dtype], TOLERANCES[accumulated_dtype])


def test_weight_gradient_of_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"weight_gradient \(5, 7\); allowed are \[T, K\], \[T, N\] and \[N, K\]"):
        package.add_weight_gradient(torch.zeros(3, 5), torch.zeros(3, 7), torch.zeros(5, 7))
