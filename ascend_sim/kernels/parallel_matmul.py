"""Matrix products with a collective in the same operator, over the simulated HCCL.

The collective is that of the group whose communicator is named: its checks, and its counts, are those of a call from
``torch.distributed``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from ascend_sim.errors import ConstraintError, require
from ascend_sim.kernels.checks import (
    require_choice,
    require_dim,
    require_dtype,
    require_range,
    require_same_dtype,
    wide,
)
from ascend_sim.kernels.registry import kernel

_DOCS = "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu"
_RANKS = (2, 4, 8, 16, 32)
_CANN = "mc2/{} (gitcode.com/cann/ops-transformer)"
_EXPERT_RANKS = (8, 16, 32, 64)
_EXCHANGED = (2 * 2**20, 100 * 2**20)
"""Bytes of the rows of ``gmm_x`` that each two ranks exchange."""
_DTYPES = (torch.float16, torch.bfloat16)
_ROUNDED = "Products are accumulated in float32 and rounded once, before they are sent."
_ROUTED = "The product of a shared expert (mm_x, mm_weight) is not modelled."
_EMPTY = "A tensor without elements is refused: the document does not speak of one."


@kernel(
    "npu_all_gather_base_mm",
    source=f"{_DOCS}/torch_npu-npu_all_gather_base_mm.md",
    assumes=(_EMPTY,),
)
def npu_all_gather_base_mm(
    input: torch.Tensor, x2: torch.Tensor, hcom: str, world_size: int, gather_output: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``all_gather(input) @ x2``, and ``all_gather(input)`` or, without ``gather_output``, an empty tensor."""
    backend = _check(input, x2, hcom, world_size)
    gathered = _on_device(input.shape[0] * world_size, input.shape[1], input.dtype)
    backend._allgather_base(gathered, _uploaded(input)).wait()
    whole = _host(gathered)
    return _product(whole, x2), whole if gather_output else input.new_empty(0)


@kernel(
    "npu_mm_reduce_scatter_base",
    source=f"{_DOCS}/torch_npu-npu_mm_reduce_scatter_base.md",
    assumes=(_EMPTY, "The products of each rank are rounded to the data type of the input before they are summed."),
)
def npu_mm_reduce_scatter_base(
    input: torch.Tensor, x2: torch.Tensor, hcom: str, world_size: int, reduce_op: str
) -> torch.Tensor:
    """This rank's rows of the sum over the ranks of ``input @ x2``."""
    backend = _check(input, x2, hcom, world_size)
    require_choice("reduce_op", reduce_op, ("sum",))
    rows = input.shape[0]
    require(rows % world_size == 0, f"input has {rows} rows, needed: a multiple of the {world_size} ranks")
    scattered = _on_device(rows // world_size, x2.shape[1], input.dtype)
    backend._reduce_scatter_base(scattered, _uploaded(_product(input, x2))).wait()
    return _host(scattered)


@kernel(
    "npu_alltoallv_gmm",
    source=f"{_DOCS}/torch_npu-npu_alltoallv_gmm.md; limits of what two ranks exchange: "
    f"{_CANN.format('allto_allv_grouped_mat_mul/op_host/op_tiling')}; order of the counts: "
    "test/test_custom_ops/test_alltoallv_gmm.py (Ascend/op-plugin)",
    assumes=(_ROUNDED, _ROUTED),
)
def npu_alltoallv_gmm(
    gmm_x: torch.Tensor,
    gmm_weight: torch.Tensor,
    hcom: str,
    ep_world_size: int,
    send_counts: list[int],
    recv_counts: list[int],
    trans_gmm_weight: bool,
    permute_out_flag: bool,
) -> tuple[torch.Tensor, None, torch.Tensor | None]:
    """Rows of ``gmm_x`` to the ranks of their experts, sorted there by expert, and each expert's product of its own.

    ``send_counts`` are by rank, then by that rank's expert; ``recv_counts`` by rank, then by this rank's expert.
    """
    matrices = gmm_weight.transpose(-1, -2) if trans_gmm_weight else gmm_weight
    exchange = _check_exchange(gmm_x, matrices, hcom, ep_world_size, send_counts, recv_counts)
    by_expert = _sorted(exchange(gmm_x), recv_counts, len(matrices))
    return _grouped_product(by_expert, matrices, recv_counts), None, by_expert if permute_out_flag else None


@kernel(
    "npu_gmm_alltoallv",
    source=f"{_DOCS}/torch_npu-npu_gmm_alltoallv.md; limits of what two ranks exchange, and order of the counts: "
    f"{_CANN.format('grouped_mat_mul_allto_allv')}",
    assumes=(_ROUNDED, _ROUTED),
)
def npu_gmm_alltoallv(
    gmm_x: torch.Tensor,
    gmm_weight: torch.Tensor,
    hcom: str,
    ep_world_size: int,
    send_counts: list[int],
    recv_counts: list[int],
    trans_gmm_weight: bool,
) -> tuple[torch.Tensor, None]:
    """Each expert's product of its rows of ``gmm_x``, and these back to the ranks that they are of.

    ``send_counts`` are by rank, then by this rank's expert; ``recv_counts`` by rank, then by that rank's expert.
    """
    matrices = gmm_weight.transpose(-1, -2) if trans_gmm_weight else gmm_weight
    exchange = _check_exchange(gmm_x, matrices, hcom, ep_world_size, send_counts, recv_counts)
    experts = len(matrices)
    product = _grouped_product(gmm_x, matrices, send_counts)
    turned = [send_counts[rank * experts + expert] for expert in range(experts) for rank in range(ep_world_size)]
    return exchange(_sorted(product, turned, ep_world_size)), None


def _check(input: torch.Tensor, x2: torch.Tensor, hcom: str, world_size: int) -> Any:
    """What both operators need; returns the backend that `hcom` names."""
    for name, tensor in (("input", input), ("x2", x2)):
        require_dim(name, tensor, 2)
        require_dtype(name, tensor, _DTYPES)
        require(tensor.numel() > 0, f"{name} has shape {tuple(tensor.shape)}, needed: at least one element")
    require_same_dtype(input=input, x2=x2)
    require(input.is_contiguous(), f"input has strides {input.stride()}: it must not be transposed")
    inner, rows = input.shape[1], x2.shape[0]
    require(inner == rows, f"input has {inner} columns and x2 {rows} rows, needed: as many")
    require(256 <= inner < 65535, f"input has {inner} columns, allowed: 256 to 65534")
    require_choice("world_size", world_size, _RANKS)
    backend = _backend(hcom)
    require(backend.size() == world_size, f"world_size is {world_size}, the group has {backend.size()} ranks")
    return backend


def _check_exchange(
    gmm_x: torch.Tensor,
    matrices: torch.Tensor,
    hcom: str,
    ep_world_size: int,
    send_counts: list[int],
    recv_counts: list[int],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What both operators of experts need; returns the exchange of rows, in the group that `hcom` names."""
    require_dim("gmm_x", gmm_x, 2)
    require_dim("gmm_weight", matrices, 3)
    for name, tensor in (("gmm_x", gmm_x), ("gmm_weight", matrices)):
        require_dtype(name, tensor, _DTYPES)
    require_same_dtype(gmm_x=gmm_x, gmm_weight=matrices)
    experts, inner, outer = matrices.shape
    require(
        gmm_x.shape[1] == inner, f"gmm_x has {gmm_x.shape[1]} columns and each expert {inner} rows, needed: as many"
    )
    for name, size in (("inner", inner), ("outer", outer)):
        require(0 < size < 65536, f"the {name} size is {size}, allowed: 1 to 65535")
    require_choice("ep_world_size", ep_world_size, _EXPERT_RANKS)
    require_range("experts of a rank", experts, 1, 32)
    require_range("experts of all ranks", experts * ep_world_size, 1, 256)
    leaving, arriving = _per_rank(send_counts, experts), _per_rank(recv_counts, experts)
    for name, counts, per_rank in (("send_counts", send_counts, leaving), ("recv_counts", recv_counts, arriving)):
        require(
            len(counts) == experts * ep_world_size,
            f"{name} has {len(counts)} entries, needed: {experts} for each of {ep_world_size} ranks",
        )
        for rank, count in enumerate(per_rank):
            require_range(f"bytes in {name} of rank {rank}", count * inner * 2, *_EXCHANGED)
    rows = sum(send_counts)
    require(gmm_x.shape[0] == rows, f"gmm_x has {gmm_x.shape[0]} rows, needed: the sum of send_counts, {rows}")
    backend = _backend(hcom)
    require(backend.size() == ep_world_size, f"ep_world_size is {ep_world_size}, the group has {backend.size()} ranks")
    return partial(_exchanged, backend, leaving=leaving, arriving=arriving)


def _per_rank(counts: list[int], experts: int) -> list[int]:
    return [sum(counts[start : start + experts]) for start in range(0, len(counts), experts)]


def _sorted(rows: torch.Tensor, counts: list[int], inner: int) -> torch.Tensor:
    """Rows in groups ``counts[i * inner + j]`` -> those of the first ``j`` first."""
    groups = rows.split(counts)
    return torch.cat([group for j in range(inner) for group in groups[j::inner]])


def _grouped_product(rows: torch.Tensor, matrices: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """``rows[e] @ matrices[e]``; ``counts`` are by rank, then by expert."""
    experts = matrices.shape[0]
    parts = rows.split([sum(counts[expert::experts]) for expert in range(experts)])
    return torch.cat([_product(part, matrix) for part, matrix in zip(parts, matrices, strict=True)])


def _exchanged(backend: Any, rows: torch.Tensor, leaving: list[int], arriving: list[int]) -> torch.Tensor:
    arrived = _on_device(sum(arriving), rows.shape[1], rows.dtype)
    backend.alltoall_base(arrived, _uploaded(rows), arriving, leaving, dist.AllToAllOptions()).wait()
    return _host(arrived)


def _backend(hcom: str) -> Any:
    """The backend whose collectives are from here on part of the operator."""
    torch.ops.ascend_sim.begin_operator()
    device = torch.device("npu")
    for group in dist.distributed_c10d._world.pg_map:
        if device in group._device_types:
            backend: Any = group._get_backend(device)
            if backend.get_hccl_comm_name(0) == hcom:
                return backend
    raise ConstraintError(f"hcom is {hcom!r}, which is no group's communicator; get_hccl_comm_name has the names")


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (wide(a) @ wide(b)).to(a.dtype)


def _on_device(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(rows, columns, dtype=dtype, device="npu")


def _uploaded(tensor: torch.Tensor) -> torch.Tensor:
    """What the device has at hand already: nothing crosses the bus."""
    on_device = _on_device(tensor.shape[0], tensor.shape[1], tensor.dtype)
    _host(on_device).copy_(tensor)
    return on_device


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return torch.ops.ascend_sim.host_alias(tensor)
