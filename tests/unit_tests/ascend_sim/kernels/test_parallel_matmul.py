"""What the products with a collective in the same operator refuse.

What they compute takes several ranks: tests/unit_tests/ops/test_parallel_linear.py, test_parallel_grouped_gemm.py and
collectives_errors.py.
"""

import pytest
import torch

from ascend_sim.kernels.parallel_matmul import (
    npu_all_gather_base_mm,
    npu_alltoallv_gmm,
    npu_gmm_alltoallv,
    npu_mm_reduce_scatter_base,
)
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


ROWS = 2**20 // 64  # of 64 columns: 2 MiB
EXPERTS = {"x": (8 * ROWS, 64), "weight": (2, 64, 3), "dtype": BFLOAT16, "weight_dtype": BFLOAT16, "ranks": 8}
COUNTS = [ROWS - 1, 1] * 8
BAD_EXPERTS = [
    ({"dtype": FLOAT32, "weight_dtype": FLOAT32}, "gmm_x is float32, allowed: float16, bfloat16"),
    ({"weight_dtype": FLOAT16}, "one data type is needed"),
    ({"x": (8 * ROWS, 64, 1)}, "gmm_x has 3 dimensions"),
    ({"weight": (64, 3)}, "gmm_weight has 2 dimensions"),
    ({"weight": (2, 65, 3)}, "gmm_x has 64 columns and each expert 65 rows"),
    ({"weight": (2, 64, 65536)}, "the outer size is 65536, allowed: 1 to 65535"),
    ({"ranks": 4}, "ep_world_size is 4, allowed: 8, 16, 32, 64"),
    ({"weight": (33, 64, 3)}, "experts of a rank is 33, allowed: 1 to 32"),
    ({"weight": (8, 64, 3), "ranks": 64}, "experts of all ranks is 512, allowed: 1 to 256"),
    ({"sent": COUNTS[:-1]}, "send_counts has 15 entries, needed: 2 for each of 8 ranks"),
    ({"received": COUNTS * 2}, "recv_counts has 32 entries"),
    ({"sent": [*COUNTS[:-1], 0]}, "bytes in send_counts of rank 7 is 2097024, allowed: 2097152 to 104857600"),
    ({"received": [51 * ROWS, *COUNTS[1:]]}, "bytes in recv_counts of rank 0 is 106954880, allowed"),
    ({"x": (8 * ROWS + 1, 64)}, "needed: the sum of send_counts, 131072"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_EXPERTS)
def test_exchange_refused(changes: dict, message: str) -> None:
    call = {"sent": COUNTS, "received": COUNTS} | EXPERTS | changes
    x = torch.zeros(call["x"], dtype=call["dtype"])
    weight = torch.zeros(call["weight"], dtype=call["weight_dtype"])
    arguments = "hcom", call["ranks"], call["sent"], call["received"], False
    with refuses("npu_alltoallv_gmm", message):
        npu_alltoallv_gmm(x, weight, *arguments, True)
    with refuses("npu_gmm_alltoallv", message):
        npu_gmm_alltoallv(x, weight, *arguments)
