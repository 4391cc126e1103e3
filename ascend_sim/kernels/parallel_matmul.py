"""Matrix products with a collective in the same operator, over the simulated HCCL.

The collective is that of the group whose communicator is named: its checks, and its counts, are those of a call from
``torch.distributed``.
"""

from typing import Any

import torch
import torch.distributed as dist

from ascend_sim.errors import ConstraintError, require
from ascend_sim.kernels.checks import require_choice, require_dim, require_dtype, require_same_dtype, wide
from ascend_sim.kernels.registry import kernel

_DOCS = "https://gitcode.com/Ascend/op-plugin/blob/26.0.0/docs/zh/custom_APIs/torch_npu"
_RANKS = (2, 4, 8, 16, 32)
_DTYPES = (torch.float16, torch.bfloat16)
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
