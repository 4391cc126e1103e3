"""The exchange and the products in one Ascend operator: ``npu_alltoallv_gmm``, ``npu_gmm_alltoallv``.

Neither has an autograd formula in torch_npu. They are operators of Atlas A3 alone, and want much of an exchange: 2 to
100 MiB between each two ranks. All ranks must come to the same answer whether they get that, so it is computed from
what all know, the counts of all. Constraints: torch_npu's documents of the two (Ascend/op-plugin, docs/zh/custom_APIs),
and what their tiling in CANN checks (ops-transformer, mc2/allto_allv_grouped_mat_mul, mc2/grouped_mat_mul_allto_allv).
"""

from collections.abc import Callable
from itertools import chain

import torch
import torch_npu
from torch import Tensor

from ascend_patch.ops.ascend import communicator, require_tensors
from ascend_patch.ops.function import apply
from ascend_patch.ops.parallel_grouped_gemm.exchange import Exchange
from ascend_patch.ops.parallel_grouped_gemm.passes import AllToAllGroupedGemm, GroupedGemmAllToAll, Products
from ascend_patch.ops.registry import Unsupported

_OPERATORS = "npu_alltoallv_gmm and npu_gmm_alltoallv"
_DEVICES = "Ascend910_93"
"""How the names of Atlas A3's chips begin."""
_DTYPES = (torch.float16, torch.bfloat16)
_RANKS = (8, 16, 32, 64)
_MOST_EXPERTS = 32
_MOST_EXPERTS_OF_ALL = 256
_LARGEST = 65535
"""Of the sizes of a weight."""
_EXCHANGED = (2 * 2**20, 100 * 2**20)
"""Bytes between two ranks. CANN counts the input of an operator also where it sends the result."""


def all_to_all_grouped_gemm(
    x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_grouped_gemm.all_to_all_grouped_gemm`."""
    _require(x, weight, exchange)
    return apply(AllToAllGroupedGemm, x, weight, exchange, weight_gradient, _PRODUCTS)


def grouped_gemm_all_to_all(
    x: Tensor, weight: Tensor, exchange: Exchange, weight_gradient: Tensor | None = None
) -> Tensor:
    """See :func:`ascend_patch.ops.parallel_grouped_gemm.grouped_gemm_all_to_all`."""
    _require(x, weight, exchange)
    return apply(GroupedGemmAllToAll, x, weight, exchange, weight_gradient, _PRODUCTS)


def _require(x: Tensor, weight: Tensor, exchange: Exchange) -> None:
    require_tensors(_OPERATORS, x, weight)
    device, ranks = torch_npu.npu.get_device_name(), exchange.group.size()
    if not device.startswith(_DEVICES):
        raise Unsupported(f"{device}; {_OPERATORS} are of Atlas A3 ({_DEVICES}...)")
    if x.dtype not in _DTYPES:
        raise Unsupported(f"{x.dtype}; {_OPERATORS} take float16 and bfloat16")
    if ranks not in _RANKS:
        raise Unsupported(f"{ranks} ranks; {_OPERATORS} take {', '.join(map(str, _RANKS))}")
    if exchange.experts > _MOST_EXPERTS or exchange.experts * ranks > _MOST_EXPERTS_OF_ALL:
        raise Unsupported(
            f"{exchange.experts} experts on each of {ranks} ranks; {_OPERATORS} take up to {_MOST_EXPERTS}, and "
            f"{_MOST_EXPERTS_OF_ALL} in all"
        )
    if max(weight.shape[1:]) > _LARGEST:
        raise Unsupported(f"a weight of {tuple(weight.shape)}; {_OPERATORS} take sizes up to {_LARGEST}")
    least, most = _EXCHANGED
    rows = list(chain.from_iterable(exchange.pairs))
    # Forward and backward, the columns of the input are each of the weight's sizes in turn.
    if 2 * min(rows) * min(weight.shape[1:]) < least or 2 * max(rows) * max(weight.shape[1:]) > most:
        raise Unsupported(f"an exchange of too little or too much; {_OPERATORS} take 2 to 100 MiB between two ranks")


def _exchange_matmul(a: Tensor, b: Tensor, exchange: Exchange) -> tuple[Tensor, Tensor]:
    weight, transposed = _stored(b)
    product, _, arrived = torch_npu.npu_alltoallv_gmm(
        a,
        weight,
        communicator(exchange.group),
        exchange.group.size(),
        list(chain.from_iterable(exchange.sent)),
        list(chain.from_iterable(exchange.received)),
        trans_gmm_weight=transposed,
        permute_out_flag=True,
    )
    return product, arrived


def _matmul_exchange(a: Tensor, b: Tensor, exchange: Exchange) -> Callable[[], Tensor]:
    weight, transposed = _stored(b)
    back, _ = torch_npu.npu_gmm_alltoallv(
        a,
        weight,
        communicator(exchange.group),
        exchange.group.size(),
        list(chain.from_iterable(exchange.received)),
        list(chain.from_iterable(exchange.sent)),
        trans_gmm_weight=transposed,
    )
    return lambda: back


def _stored(b: Tensor) -> tuple[Tensor, bool]:
    """The matrices as they are in memory, and whether the operator is to transpose them."""
    return (b, False) if b.is_contiguous() else (b.transpose(1, 2), True)


_PRODUCTS = Products(_exchange_matmul, _matmul_exchange)
