"""Grouped matrix products: npu_grouped_matmul (both overloads) and npu_grouped_matmul_add_."""

import torch

from ascend_sim.errors import ConstraintError, NotModelled, require
from ascend_sim.kernels.checks import FLOATING, require_choice, require_dim, require_dtype, require_shape, short, wide
from ascend_sim.kernels.registry import kernel

_DOCS = (
    "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu/torch_npu-npu_grouped_matmul.md "
    "(Ascend/op-plugin 26.0.0)"
)
_INNER_LIMIT = 65536
_MOST_GROUPS = 1024
_LONGEST_LIST = 128
_BIAS_DTYPE = {torch.float16: torch.float16, torch.bfloat16: torch.float32, torch.float32: torch.float32}


@kernel(
    "npu_grouped_matmul",
    source=_DOCS + "; transposition and group_type 2: aclnn_grouped_matmul.cpp in gitcode.com/cann/ops-transformer, "
    "gmm/grouped_matmul/op_host/op_api",
    assumes=(
        "Rows are accumulated in float32 and rounded once.",
        "A call without any token is allowed and gives an empty result (group_type 0) or zeros (group_type 2).",
        "Values of group_list are checked here; the device trusts them.",
        "The quantised and pseudo-quantised forms and the fused activations are not modelled.",
    ),
    ignores=("tuning_config",),
)
def npu_grouped_matmul(
    x: list[torch.Tensor],
    weight: list[torch.Tensor],
    bias: list[torch.Tensor] | None,
    group_list: torch.Tensor | None,
    split_item: int | None,
    group_type: int | None,
    group_list_type: int | None,
) -> list[torch.Tensor]:
    """``y_i = x_i @ weight_i + bias_i``: groups of rows (`group_type` 0) or of the inner dimension (2), or pairs (-1).

    Args:
        x: float16, bfloat16 or float32, at most 128 tensors, one data type with `weight`.
            group_type 0: ``[rows, k]``; 2: ``[m, rows]`` as the transposed view of a ``[rows, m]`` tensor.
        weight: group_type 0: one ``[groups, k, n]`` or a list of ``[k, n]``; 2: one ``[rows, n]``.
        bias: One a group, float32 for bfloat16.
        group_list: int64 on the device: running totals (`group_list_type` 0) or sizes (1) of the groups.
        split_item: 2 or 3: one result; 0 or 1: one a weight (group_type -1 only).
        group_type: -1, 0 or 2; there is no default.
        group_list_type: See `group_list`.

    Returns:
        group_type 0: ``[rows, n]``; 2: ``[groups, m, n]``; -1: one tensor a pair.
    """
    _check_lists(x, weight, bias)
    require_choice("group_type", group_type, (-1, 0, 2))
    require_choice("split_item", split_item, (0, 1, 2, 3))
    if group_type == -1:
        require(group_list is None, "group_list is given, with group_type -1 it must be None")
        require_choice("split_item", split_item, (0, 1))
        return _pairs(x, weight, bias)
    require_choice("split_item", split_item, (2, 3))
    if group_list is None:
        raise ConstraintError(f"group_list is None, with group_type {group_type} it is needed")
    if x[0].dtype == torch.float32:
        require(
            len(x) == len(weight) == 1,
            f"{len(x)} x and {len(weight)} weight tensors in float32, allowed: one of each",
        )
    sizes = group_sizes(group_list, group_list_type or 0)
    if group_type == 2:
        return [_by_inner_dimension(x, weight, bias, sizes)]
    return [_by_rows(x, weight, bias, sizes)]


@kernel(
    "npu_grouped_matmul.List",
    source=_DOCS + " (group_list as a list of int)",
    assumes=("Rows are accumulated in float32 and rounded once.",),
)
def npu_grouped_matmul_list(
    x: list[torch.Tensor],
    weight: list[torch.Tensor],
    bias: list[torch.Tensor] | None,
    group_list: list[int] | None,
    split_item: int | None,
    group_type: int | None,
    output_dtype: torch.dtype | None,
) -> list[torch.Tensor]:
    """The older form: `group_list` holds running totals on the host, `group_type` must be None.

    See :func:`npu_grouped_matmul`; weights are always a list of ``[k, n]``.
    """
    _check_lists(x, weight, bias)
    require_choice("split_item", split_item, (0, 1, 2, 3))
    require(group_type is None, f"group_type is {group_type}, with a list of int it must be None")
    require(output_dtype in (None, x[0].dtype), f"output_dtype is {output_dtype}, allowed: None or that of x")
    for tensor in weight:
        require_dim("weight", tensor, 2)
    one_result = split_item in (2, 3)
    if not group_list:
        require(len(x) == len(weight), f"{len(x)} x and {len(weight)} weight tensors without a group_list")
        results = _pairs(x, weight, bias)
        return [torch.cat(results)] if one_result else results
    length = len(group_list)
    require(1 < length <= _LONGEST_LIST, f"group_list has length {length}, allowed: 2 to {_LONGEST_LIST}")
    require(one_result or len(x) == 1, f"split_item is {split_item} with several x and a group_list, allowed: 2, 3")
    sizes = _differences(group_list)
    joined = _by_rows(x, weight, bias, sizes)
    return [joined] if one_result else list(joined.split(sizes))


@kernel(
    "npu_grouped_matmul_add_",
    source="https://www.hiascend.com/document/detail/zh/CANNCommunityEdition/850alpha002/API/aolapi/context/"
    "aclnnGroupedMatmulAdd.md; Ascend/op-plugin 26.0.0 op_plugin/ops/opapi/GroupedMatmulAddNpuOpApi.cpp and "
    "test/test_custom_ops/test_npu_grouped_matmul_add.py",
    assumes=("A group without rows leaves its part of the result untouched.",),
)
def npu_grouped_matmul_add_(
    input: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    group_list: torch.Tensor,
    transpose_x: bool,
    transpose_weight: bool,
    group_type: int,
    group_list_type: int | None,
) -> torch.Tensor:
    """``input_i += x_i.T @ weight_i`` in place: the weight gradient of a grouped layer.

    Args:
        input: float32, ``[groups, m, n]`` or ``[groups * m, n]``, contiguous.
        x: ``[rows, m]``, float16 or bfloat16, not empty.
        weight: ``[rows, n]``, data type of `x`.
        group_list: Running totals of the rows a group, int64. On Atlas A2 op-plugin does not pass `group_list_type`
            on, so sizes would be read as totals: anything but 0 is refused.
        transpose_x: Only True.
        transpose_weight: Only False.
        group_type: Only 2.
        group_list_type: Only 0.

    Returns:
        `input`.
    """
    require_choice("transpose_x", transpose_x, (True,))
    require_choice("transpose_weight", transpose_weight, (False,))
    require_choice("group_type", group_type, (2,))
    require_choice("group_list_type", group_list_type or 0, (0,))
    require_dtype("x", x, (torch.float16, torch.bfloat16))
    require_dtype("weight", weight, (x.dtype,))
    require_dtype("input", input, (torch.float32,))
    require_dim("x", x, 2)
    require_dim("weight", weight, 2)
    rows, m = x.shape
    n = weight.shape[1]
    require(weight.shape[0] == rows, f"weight has {weight.shape[0]} rows, needed: the {rows} of x")
    require(rows > 0, "x is empty, this operator takes no empty tensor")
    require(input.is_contiguous(), f"input has strides {input.stride()}, a contiguous tensor is needed")
    sizes = group_sizes(group_list, 0)
    require_shape("input", input, (len(sizes), m, n), (len(sizes) * m, n))
    require(sum(sizes) == rows, f"group_list ends at {sum(sizes)}, needed: the {rows} rows of x")
    results = input.view(len(sizes), m, n)
    for result, part, gradient in zip(results, x.split(sizes), weight.split(sizes), strict=True):
        result.addmm_(wide(part).T, wide(gradient))
    return input


def group_sizes(group_list: torch.Tensor, group_list_type: int) -> list[int]:
    """Rows of each group, from running totals (type 0) or sizes (type 1).

    Raises:
        ConstraintError: Not an int64 vector of at most 1,024 groups, negative or falling values, a form that is only
            for int8, or sizes for a single group.
    """
    require_choice("group_list_type", group_list_type, (0, 1))
    require_dtype("group_list", group_list, (torch.int64,))
    require_dim("group_list", group_list, 1)
    groups = group_list.numel()
    require(1 <= groups <= _MOST_GROUPS, f"group_list has {groups} groups, allowed: 1 to {_MOST_GROUPS}")
    values = group_list.tolist()
    if group_list_type == 0:
        return _differences(values)
    require(groups > 1, "group_list has one group, with group_list_type 1 at least two are needed")
    require(min(values) >= 0, f"group_list holds {min(values)}, sizes must not be negative")
    return values


def _differences(totals: list[int]) -> list[int]:
    sizes = [total - before for before, total in zip([0, *totals], totals, strict=False)]
    require(min(sizes) >= 0, f"group_list {_short(totals)} must not be negative or fall (running totals)")
    return sizes


def _check_lists(x: list[torch.Tensor], weight: list[torch.Tensor], bias: list[torch.Tensor] | None) -> None:
    require(len(x) > 0 and len(weight) > 0, f"{len(x)} x and {len(weight)} weight tensors, needed: at least one each")
    for name, tensors in (("x", x), ("weight", weight)):
        require(len(tensors) <= _LONGEST_LIST, f"{len(tensors)} tensors in {name}, allowed: at most {_LONGEST_LIST}")
        for tensor in tensors:
            if tensor.dtype in (torch.int8, torch.int32):
                raise NotModelled(f"{name} is {short(tensor.dtype)}: quantised products are not modelled")
            require_dtype(name, tensor, FLOATING)
            require(
                tensor.dtype == x[0].dtype, f"{name} is {short(tensor.dtype)}, needed: {short(x[0].dtype)} like x[0]"
            )
            require(tensor.dim() >= 2, f"{name} has {tensor.dim()} dimensions, allowed: at least 2")
            inner = tensor.shape[-2 if _transposed(tensor) else -1]
            require(inner < _INNER_LIMIT, f"{name} has inner size {inner}, allowed: less than {_INNER_LIMIT}")
    for tensor in bias or ():
        require_dtype("bias", tensor, (_BIAS_DTYPE[x[0].dtype],))


def _pairs(x: list[torch.Tensor], weight: list[torch.Tensor], bias: list[torch.Tensor] | None) -> list[torch.Tensor]:
    """One product a pair, no groups."""
    require(len(x) == len(weight), f"{len(x)} x tensors for {len(weight)} weights, needed: as many")
    biases = _biases(bias, len(weight))
    for left, right in zip(x, weight, strict=True):
        require(2 <= left.dim() <= 6, f"x has {left.dim()} dimensions, allowed: 2 to 6")
        require_dim("weight", right, 2)
        _check_inner(left.shape[-1], right.shape[0])
    return [_product(left, right, one) for left, right, one in zip(x, weight, biases, strict=True)]


def _by_rows(
    x: list[torch.Tensor], weight: list[torch.Tensor], bias: list[torch.Tensor] | None, sizes: list[int]
) -> torch.Tensor:
    """Groups of rows: ``[rows, k]`` times one weight a group, in one result."""
    if len(weight) == 1:
        require_dim("weight", weight[0], 3)
        weight = list(weight[0].unbind())
        bias = list(bias[0].unbind()) if bias is not None and bias[0].dim() == 2 else bias
    else:
        for tensor in weight:
            require_dim("weight", tensor, 2)
            require(tensor.shape[1] == weight[0].shape[1], "all weights must have the same last dimension")
    require(len(sizes) == len(weight), f"group_list has {len(sizes)} groups for {len(weight)} weights")
    for tensor in x:
        require_dim("x", tensor, 2)
        require(
            not _transposed(tensor), f"x has strides {tensor.stride()}: it must not be transposed for groups of rows"
        )
    parts: list[torch.Tensor] = x
    if len(x) == 1:
        rows = x[0].shape[0]
        require(sum(sizes) == rows, f"group_list covers {sum(sizes)} rows, needed: the {rows} of x")
        parts = list(x[0].split(sizes))
    found = [part.shape[0] for part in parts]
    require(found == sizes, f"x has {_short(found)} rows, needed: those of group_list {_short(sizes)}")
    for part, right in zip(parts, weight, strict=True):
        _check_inner(part.shape[1], right.shape[0])
    biases = _biases(bias, len(weight))
    return torch.cat([_product(part, right, one) for part, right, one in zip(parts, weight, biases, strict=True)])


def _by_inner_dimension(
    x: list[torch.Tensor], weight: list[torch.Tensor], bias: list[torch.Tensor] | None, sizes: list[int]
) -> torch.Tensor:
    """Groups of the inner dimension: ``[m, rows]`` times ``[rows, n]``, a matrix a group."""
    require(len(x) == len(weight) == 1, f"{len(x)} x and {len(weight)} weight tensors, with group_type 2 one of each")
    require(bias is None, "bias is given, with group_type 2 it must be None")
    left, right = x[0], weight[0]
    require_dim("x", left, 2)
    require_dim("weight", right, 2)
    require(
        _transposed(left),
        f"x has shape {tuple(left.shape)} and strides {left.stride()}, with group_type 2 it must be the transposed "
        "view of a contiguous [rows, m] tensor",
    )
    _check_inner(left.shape[1], right.shape[0])
    require(sum(sizes) == left.shape[1], f"group_list covers {sum(sizes)} rows, needed: the {left.shape[1]} of x")
    parts = zip(left.split(sizes, 1), right.split(sizes, 0), strict=True)
    return torch.stack([_product(a, b, None) for a, b in parts])


def _transposed(tensor: torch.Tensor) -> bool:
    """What the operator takes for a transposed view: the last dimension strides over the one before."""
    return tensor.stride(-2) == 1 and tensor.stride(-1) == tensor.shape[-2] and tensor.shape[-2:] != (1, 1)


def _product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = wide(left) @ wide(right)
    return (product if bias is None else product + wide(bias)).to(left.dtype)


def _biases(bias: list[torch.Tensor] | None, count: int) -> list[torch.Tensor | None]:
    if bias is None:
        return [None] * count
    require(len(bias) == count, f"{len(bias)} bias tensors, needed: {count}")
    for tensor in bias:
        require_dim("bias", tensor, 1)
    return list(bias)


def _check_inner(found: int, needed: int) -> None:
    require(found == needed, f"x has {found} columns and weight {needed} rows, needed: as many")


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:8]))}, …]"
