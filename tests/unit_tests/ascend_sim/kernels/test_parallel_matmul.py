"""What npu_all_gather_base_mm and npu_mm_reduce_scatter_base refuse.

What they compute takes several ranks: tests/unit_tests/ops/test_parallel_linear.py and collectives_errors.py.
"""

import pytest
import torch

from ascend_sim.kernels.parallel_matmul import npu_all_gather_base_mm, npu_mm_reduce_scatter_base
from tests.unit_tests.ascend_sim.kernels.checks import BFLOAT16, FLOAT16, FLOAT32, refuses

GOOD = {"a": (4, 256), "b": (256, 8), "dtypes": (BFLOAT16, BFLOAT16), "ranks": 2, "transposed": False}
BAD = [
    ({"dtypes": (FLOAT32, FLOAT32)}, "input is float32, allowed: float16, bfloat16"),
    ({"dtypes": (FLOAT16, BFLOAT16)}, "one data type is needed"),
    ({"a": (2, 2, 256)}, "input has 3 dimensions"),
    ({"b": (256,)}, "x2 has 1 dimensions"),
    ({"a": (0, 256)}, "needed: at least one element"),
    ({"a": (4, 300)}, "300 columns and x2 256 rows"),
    ({"a": (4, 255), "b": (255, 8)}, "255 columns, allowed: 256 to 65534"),
    ({"a": (1, 65535), "b": (65535, 1)}, "65535 columns, allowed: 256 to 65534"),
    ({"ranks": 3}, "world_size is 3, allowed: 2, 4, 8, 16, 32"),
    ({"a": (256, 256), "transposed": True}, "must not be transposed"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_refused(changes: dict, message: str) -> None:
    call = GOOD | changes
    a, b = (torch.zeros(call[name], dtype=dtype) for name, dtype in zip("ab", call["dtypes"], strict=True))
    if call["transposed"]:
        a = a.t()
    with refuses("npu_all_gather_base_mm", message):
        npu_all_gather_base_mm(a, b, "hcom", call["ranks"], True)
    with refuses("npu_mm_reduce_scatter_base", message):
        npu_mm_reduce_scatter_base(a, b, "hcom", call["ranks"], "sum")
