"""Products and communication in one Ascend operator: ``npu_all_gather_base_mm``, ``npu_mm_reduce_scatter_base``.

Neither has an autograd formula in torch_npu. Constraints: torch_npu's documents of the two (Ascend/op-plugin,
docs/zh/custom_APIs). Two of them cannot be checked here: the ranks must be joined by HCCS, as those of a node are,
and on Atlas A2 all such operators of a model must name one communicator.
"""

import torch
import torch.distributed as dist
import torch_npu
from torch import Tensor

from ascend_patch.ops.ascend import communicator, require_tensors
from ascend_patch.ops.function import apply
from ascend_patch.ops.parallel_linear.passes import AllGatherLinear, LinearReduceScatter, Products
from ascend_patch.ops.registry import Unsupported

_OPERATORS = "npu_all_gather_base_mm and npu_mm_reduce_scatter_base"
_DTYPES = (torch.float16, torch.bfloat16)
_INNER = range(256, 65535)
"""Allowed sizes of what a product sums over."""
_RANKS = (2, 4, 8, 16, 32)


def all_gather_linear(
    x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_linear.all_gather_linear`."""
    _require(x, weight, group)
    return apply(AllGatherLinear, x, weight, group, weight_gradient, _PRODUCTS)


def linear_reduce_scatter(
    x: Tensor, weight: Tensor, group: dist.ProcessGroup, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_linear.linear_reduce_scatter`."""
    _require(x, weight, group)
    return apply(LinearReduceScatter, x, weight, group, weight_gradient, _PRODUCTS)


def _require(x: Tensor, weight: Tensor, group: dist.ProcessGroup) -> None:
    require_tensors(_OPERATORS, x, weight)
    if x.dtype not in _DTYPES:
        raise Unsupported(f"{x.dtype}; {_OPERATORS} take float16 and bfloat16")
    if group.size() not in _RANKS:
        raise Unsupported(f"{group.size()} ranks; {_OPERATORS} take {', '.join(map(str, _RANKS))}")
    if not all(size in _INNER for size in weight.shape):  # forward sums over one, backward over the other
        raise Unsupported(
            f"a weight of {tuple(weight.shape)}; {_OPERATORS} sum over {_INNER.start} to {_INNER.stop - 1} products"
        )
    if x.shape[0] == 0:
        raise Unsupported(f"no rows; {_OPERATORS} take at least one")


def _gather_matmul(a: Tensor, b: Tensor, group: dist.ProcessGroup, keep: bool) -> tuple[Tensor, Tensor | None]:
    product, whole = torch_npu.npu_all_gather_base_mm(a, b, communicator(group), group.size(), gather_output=keep)
    return product, whole if keep else None


def _matmul_scatter(a: Tensor, b: Tensor, group: dist.ProcessGroup) -> Tensor:
    return torch_npu.npu_mm_reduce_scatter_base(a, b, communicator(group), group.size())


_PRODUCTS = Products(_gather_matmul, _matmul_scatter)
