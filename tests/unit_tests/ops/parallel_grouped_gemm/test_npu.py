"""When a rank takes the fused operators: all come to the same answer, or they would wait for each other."""

from types import SimpleNamespace

import pytest
import torch

from ascend_patch.ops.parallel_grouped_gemm import Exchange
from ascend_patch.ops.registry import Unsupported

pytestmark = pytest.mark.npu

RANKS, INNER, OUTER = 8, 64, 128
LEAST, MOST = 2 * 2**20 // (2 * INNER), 100 * 2**20 // (2 * OUTER)
"""Rows between two ranks."""


@pytest.mark.parametrize(
    ("rows", "takes"), [(LEAST, True), (LEAST - 1, False), (0, False), (MOST, True), (MOST + 1, False)]
)
def test_all_ranks_decide_alike(
    rows: int, takes: bool, npu_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all pairs of ranks one has ``rows``, the others something between what the operators need and can do."""
    from ascend_patch.ops.parallel_grouped_gemm import npu

    monkeypatch.setattr(npu.torch_npu.npu, "get_device_name", lambda: "Ascend910_9392")
    monkeypatch.setattr(npu, "apply", lambda *_: "fused")
    pairs = torch.randint(LEAST, MOST + 1, (RANKS, RANKS))
    pairs.view(-1)[torch.randint(RANKS**2, ())] = rows
    counts = torch.stack([pairs // 3, pairs - pairs // 3], 2).flatten(1).tolist()
    x = torch.empty(0, INNER, dtype=torch.bfloat16, device=npu_device)
    weight = torch.empty(2, OUTER, INNER, dtype=torch.bfloat16, device=npu_device)
    for rank in range(RANKS):
        exchange = Exchange(SimpleNamespace(size=lambda: RANKS, rank=lambda own=rank: own), counts)
        for function, b in ((npu.all_to_all_grouped_gemm, weight), (npu.grouped_gemm_all_to_all, weight.mT)):
            if takes:
                assert function(x, b, exchange) == "fused"
            else:
                with pytest.raises(Unsupported, match="an exchange of too little or too much"):
                    function(x, b, exchange)
