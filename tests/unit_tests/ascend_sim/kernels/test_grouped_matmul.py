"""npu_grouped_matmul and npu_grouped_matmul_add_ against a product a group in float64."""

import pytest
import torch

from ascend_sim.kernels.grouped_matmul import npu_grouped_matmul, npu_grouped_matmul_add_, npu_grouped_matmul_list
from tests.unit_tests.ascend_sim.kernels.checks import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    assert_close,
    not_modelled,
    refuses,
)

DTYPES = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
SIZES = pytest.mark.parametrize("sizes", [[3, 5, 1], [0, 7, 0, 2], [9, 0], [0, 0, 9], [0, 0]])
K, N = 6, 4


def product(x, weight, bias=None, group_list=None, split_item=3, group_type=0, group_list_type=0):
    return npu_grouped_matmul(x, weight, bias, group_list, split_item, group_type, group_list_type)


def groups(sizes, kind):
    return torch.tensor(sizes if kind == 1 else torch.tensor(sizes).cumsum(0).tolist())


def by_rows(x, weights, sizes):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [x[a : a + n].double() @ w.double() for a, n, w in zip(starts, sizes, weights, strict=True)]
    return torch.cat(parts)


@DTYPES
@SIZES
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_groups_of_rows(dtype, sizes, kind, transposed):
    x = torch.randn(sum(sizes), K).to(dtype)
    weight = torch.randn(len(sizes), N, K).to(dtype).mT if transposed else torch.randn(len(sizes), K, N).to(dtype)
    (found,) = product([x], [weight], group_list=groups(sizes, kind), group_list_type=kind)
    assert found.dtype == dtype
    assert_close(found, by_rows(x, weight, sizes))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
def test_a_list_of_weights_with_bias(dtype):
    sizes = [4, 0, 3]
    x, weights = torch.randn(7, K).to(dtype), [torch.randn(K, N).to(dtype) for _ in sizes]
    bias = [torch.randn(N).to(FLOAT32 if dtype == BFLOAT16 else dtype) for _ in sizes]
    expected = by_rows(x, weights, sizes) + torch.cat(
        [b.double().expand(n, N) for b, n in zip(bias, sizes, strict=True)]
    )
    (found,) = product([x], weights, bias, groups(sizes, 0))
    assert_close(found, expected)
    (found,) = product(list(x.split(sizes)), weights, bias, groups(sizes, 1), group_list_type=1)
    assert_close(found, expected)


@DTYPES
@SIZES
@pytest.mark.parametrize("kind", [0, 1])
def test_groups_of_the_inner_dimension(dtype, sizes, kind):
    x, gradient = torch.randn(sum(sizes), K).to(dtype), torch.randn(sum(sizes), N).to(dtype)
    (found,) = product([x.t()], [gradient], group_list=groups(sizes, kind), group_type=2, group_list_type=kind)
    parts = zip(x.double().split(sizes), gradient.double().split(sizes), strict=True)
    assert_close(found, torch.stack([a.t() @ b for a, b in parts]))


def test_pairs():
    x = [torch.randn(3, K), torch.randn(2, 5, K + 1)]
    weight, bias = [torch.randn(K, N), torch.randn(N, K + 1).t()], [torch.randn(N), torch.randn(N)]
    found = product(x, weight, bias, split_item=0, group_type=-1)
    expected = [a.double() @ w.double() + b.double() for a, w, b in zip(x, weight, bias, strict=True)]
    assert_close(found, expected)


@pytest.mark.parametrize("split_item", [0, 1, 2, 3])
def test_list_of_int(split_item):
    sizes, x, weights = [2, 0, 5], torch.randn(7, K), [torch.randn(K, N) for _ in range(3)]
    expected = by_rows(x, weights, sizes)
    found = npu_grouped_matmul_list([x], weights, None, [2, 2, 7], split_item, None, None)
    assert_close(found, list(expected.split(sizes)) if split_item < 2 else [expected])
    pairs = npu_grouped_matmul_list(list(x.split(sizes)), weights, None, None, split_item, None, None)
    assert_close(pairs, found_as_double(found))


def found_as_double(tensors):
    return [tensor.double() for tensor in tensors]


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("sizes", [[3, 5, 1], [0, 9, 0], [9, 0]])
def test_add(dtype, flat, sizes):
    x, gradient = torch.randn(9, K).to(dtype), torch.randn(9, N).to(dtype)
    total = torch.randn(len(sizes), K, N)
    parts = zip(total.double(), x.double().split(sizes), gradient.double().split(sizes), strict=True)
    expected = torch.stack([t + a.t() @ b for t, a, b in parts])
    given = total.view(-1, N) if flat else total
    assert npu_grouped_matmul_add_(given, x, gradient, groups(sizes, 0), True, False, 2, 0) is given
    assert_close(total, expected)


def test_constraints():
    x, weight, ends = torch.randn(5, K), torch.randn(2, K, N), torch.tensor([2, 5])
    bf16 = [tensor.bfloat16() for tensor in (x, weight)]
    for message, arguments in {
        "group_type is None, allowed: -1, 0, 2": {"group_type": None},
        "group_type is 1": {"group_type": 1},
        "split_item is 0, allowed: 2, 3": {"split_item": 0},
        "split_item is 4": {"split_item": 4},
        "group_list is None, with group_type 0 it is needed": {"group_list": None},
        "group_list_type is 2, allowed: 0, 1": {"group_list_type": 2},
        "group_list is int32, allowed: int64": {"group_list": ends.int()},
        "group_list has 2 dimensions": {"group_list": ends[None]},
        r"group_list \[5, 2\] must not be negative or fall": {"group_list": torch.tensor([5, 2])},
        "group_list holds -1, sizes must not be negative": {"group_list": torch.tensor([6, -1]), "group_list_type": 1},
        "with group_list_type 1 at least two": {"weight": [weight[:1]], "group_list": ends[1:], "group_list_type": 1},
        "group_list covers 4 rows, needed: the 5 of x": {"group_list": torch.tensor([2, 4])},
        "group_list has 3 groups for 2 weights": {"group_list": torch.tensor([2, 3, 5])},
        "x is float64": {"x": [x.double()]},
        "weight is bfloat16, needed: float32 like x": {"weight": [bf16[1]]},
        "bias is bfloat16, allowed: float32": {
            "x": bf16[:1],
            "weight": bf16[1:],
            "bias": [torch.randn(2, N).bfloat16()],
        },
        "x has 6 columns and weight 7 rows": {"weight": [torch.randn(2, K + 1, N)]},
        "weight has 2 dimensions": {"weight": [weight[0]]},
        "x has 3 dimensions": {"x": [x[None]]},
        "1 x and 2 weight tensors in float32": {"weight": list(weight)},
        "x has strides": {"x": [torch.randn(K, 5).t()]},
        "weight has inner size 65536, allowed: less than 65536": {"weight": [torch.empty(1, 1, 1).expand(2, K, 65536)]},
        "129 tensors in weight": {"weight": list(torch.randn(129, K, N))},
        "needed: at least one each": {"weight": []},
    }.items():
        with refuses("npu_grouped_matmul", message):
            product(**({"x": [x], "weight": [weight], "group_list": ends} | arguments))
    with refuses("npu_grouped_matmul", "must have the same last dimension"):
        product(bf16[:1], [bf16[1][0], bf16[1][0, :, :2]], group_list=ends)
    with refuses("npu_grouped_matmul", r"x has \[1, 4\] rows, needed: those of group_list \[2, 3\]"):
        product(list(bf16[0].split([1, 4])), list(bf16[1]), group_list=ends)
    with not_modelled("npu_grouped_matmul", "x is int8: quantised products"):
        product([x.to(torch.int8)], [weight.to(torch.int8)], group_list=ends)


def test_constraints_of_the_inner_dimension():
    x, gradient, ends = torch.randn(5, K), torch.randn(5, N), torch.tensor([2, 5])
    for message, arguments in {
        "must be the transposed view": {"x": [x.t().contiguous()]},
        "bias is given": {"bias": [torch.randn(N)]},
        "group_list covers 4 rows, needed: the 5 of x": {"group_list": torch.tensor([2, 4])},
        "x has 5 columns and weight 4 rows": {"weight": [gradient[:4]]},
        "weight has 3 dimensions": {"weight": [gradient[None]]},
        "with group_type 2 one of each": {
            "x": [x.bfloat16().t()] * 2,
            "weight": [gradient.bfloat16()] * 2,
        },
    }.items():
        with refuses("npu_grouped_matmul", message):
            product(**({"x": [x.t()], "weight": [gradient], "group_list": ends, "group_type": 2} | arguments))
    wide = torch.empty(1, 1).expand(70000, 3)
    with refuses("npu_grouped_matmul", "group_list covers"):  # 70,000 rows are fine: the inner size is that of memory
        product([torch.randn(70000, 2).t()], [wide], group_list=ends, group_type=2)


def test_constraints_of_pairs_and_lists():
    x, weight = torch.randn(5, K), torch.randn(K, N)
    with refuses("npu_grouped_matmul", "with group_type -1 it must be None"):
        product([x], [weight], group_list=torch.tensor([5]), split_item=0, group_type=-1)
    with refuses("npu_grouped_matmul", "split_item is 3, allowed: 0, 1"):
        product([x], [weight], group_type=-1)
    with refuses("npu_grouped_matmul", "1 x tensors for 2 weights"):
        product([x], [weight, weight], split_item=0, group_type=-1)
    for message, (xs, group_list, split_item, group_type) in {
        "group_type is 0, with a list of int it must be None": ([x], [2, 5], 3, 0),
        "group_list has length 1": ([x], [5], 3, None),
        r"group_list \[5, 2\] must not be negative or fall": ([x], [5, 2], 3, None),
        "1 x and 2 weight tensors without a group_list": ([x], None, 3, None),
        "split_item is 0 with several x": ([x, x], [5, 10], 0, None),
        "group_list covers 4 rows": ([x], [2, 4], 3, None),
    }.items():
        with refuses("npu_grouped_matmul.List", message):
            npu_grouped_matmul_list(xs, [weight, weight], None, group_list, split_item, group_type, None)
    with refuses("npu_grouped_matmul.List", "output_dtype is torch.float16"):
        npu_grouped_matmul_list([x], [weight], None, None, 0, None, FLOAT16)


def test_constraints_of_add():
    x, gradient, total = torch.randn(5, K).half(), torch.randn(5, N).half(), torch.zeros(2, K, N)
    ends = torch.tensor([2, 5])

    def add(total=total, x=x, gradient=gradient, ends=ends, transposes=(True, False), kind=2, list_kind=0):
        return npu_grouped_matmul_add_(total, x, gradient, ends, *transposes, kind, list_kind)

    for message, change in {
        "x is float32, allowed: float16, bfloat16": {"x": x.float()},
        "weight is bfloat16, allowed: float16": {"gradient": gradient.bfloat16()},
        "input is float16, allowed: float32": {"total": total.half()},
        r"input has shape \(6, 2, 4\)": {"total": torch.zeros(K, 2, N)},
        "input has strides": {"total": torch.zeros(2, N, K).mT},
        "weight has 4 rows, needed: the 5 of x": {"gradient": gradient[:4]},
        "x is empty": {"x": x[:0], "gradient": gradient[:0], "ends": torch.tensor([0, 0])},
        "group_list ends at 4, needed: the 5 rows of x": {"ends": torch.tensor([2, 4])},
        "transpose_x is False": {"transposes": (False, False)},
        "transpose_weight is True": {"transposes": (True, True)},
        "group_type is 0, allowed: 2": {"kind": 0},
        "group_list_type is 1, allowed: 0": {"list_kind": 1},
    }.items():
        with refuses("npu_grouped_matmul_add_", message):
            add(**change)


@pytest.mark.simulator
def test_on_device(torch_npu, npu_device):
    x, weight, gradient = torch.randn(7, K), torch.randn(3, K, N), torch.randn(7, N)
    sizes, total = [2, 0, 5], torch.zeros(3, K, N)
    ends = groups(sizes, 0).to(npu_device)
    on_device = [tensor.bfloat16().to(npu_device) for tensor in (x, weight, gradient)]
    exact = [tensor.cpu() for tensor in on_device]
    (found,) = torch_npu.npu_grouped_matmul(*[[t] for t in on_device[:2]], group_list=ends, split_item=3, group_type=0)
    assert_close(found, by_rows(*exact[:2], sizes))
    added = total.to(npu_device)
    assert torch_npu.npu_grouped_matmul_add_(added, on_device[0], on_device[2], ends) is added
    parts = zip(exact[0].double().split(sizes), exact[2].double().split(sizes), strict=True)
    assert_close(added, torch.stack([a.t() @ b for a, b in parts]))
