"""What the Ascend variants check before they call an operator of torch_npu."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ascend_patch.ops.registry import Unsupported

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the operators of torch_npu compute in; none of those used here takes float64."""


def require_tensors(operator: str, *tensors: Tensor) -> None:
    """Check that ``operator`` can take these floating point tensors.

    Raises:
        Unsupported: one is not on an NPU, or its dtype is not among :data:`DTYPES`.
    """
    for t in tensors:
        if t.device.type != "npu":
            raise Unsupported(f"a tensor on {t.device.type}; {operator} takes tensors on npu")
        if t.dtype not in DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise Unsupported(f"dtype {str(t.dtype).removeprefix('torch.')}; {operator} takes {allowed}")


def communicator(group: dist.ProcessGroup) -> str:
    """The name by which HCCL knows a group of this rank."""
    backend: Any = group._get_backend(torch.device("npu"))
    return backend.get_hccl_comm_name(dist.get_rank())
