"""RMSNorm through ``npu_rms_norm``: one launch forward, one backward.

Constraints: torch_npu's documentation of npu_rms_norm (Ascend/op-plugin, docs/zh/custom_APIs).
"""

import torch_npu
from torch import Tensor

from ascend_patch.ops.ascend import require_tensors


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See :func:`ascend_patch.ops.rms_norm.rms_norm`."""
    require_tensors("npu_rms_norm", x, weight)
    if weight.dtype != x.dtype:
        weight = weight.float()  # the one other dtype that the operator takes beside a 16 bit input
    at_least_2d = x if x.dim() > 1 else x.unsqueeze(0)
    return torch_npu.npu_rms_norm(at_least_2d, weight, eps)[0].view(x.shape)
