"""Packed samples in the forms of upstream's releases."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from megatron.core import utils as core_utils

from ascend_patch.compat import packing
from ascend_patch.engine.errors import AscendPatchError

ROWS = [[0, 3, 8], [0, 8], [0, 1, 2, 8]]
MERGED = [0, 3, 8, 16, 17, 18, 24]


@pytest.fixture
def before_0_19(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_flatten", None)


def batch_of(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """As the loader collates samples of 8 tokens."""
    bounds = [torch.tensor(row, dtype=torch.int32) for row in rows]
    tokens = torch.arange(8 * len(rows)).view(len(rows), 8)
    return {
        "tokens": tokens,
        "labels": tokens + 1,
        "loss_mask": torch.ones(len(rows), 8),
        "position_ids": tokens,
        "cu_seqlens": torch.stack([packing.cu_seqlens(row) for row in bounds]),
        "max_seqlen": torch.stack([row.diff().max() for row in bounds]),
    }


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]])
def test_a_batch_becomes_one_sequence(rows: list[list[int]]) -> None:
    batch = batch_of(rows)
    params = packing.packed_seq_params(batch)
    assert params.qkv_format == "thd"
    assert params.cu_seqlens_q.tolist() == params.cu_seqlens_kv.tolist() == MERGED[: 7 if len(rows) > 1 else 3]
    assert params.max_seqlen_q == params.max_seqlen_kv == max(max(np.diff(row)) for row in rows)
    assert batch["tokens"].tolist() == [list(range(8 * len(rows)))]
    assert batch["labels"].shape == batch["loss_mask"].shape == batch["tokens"].shape


def test_before_0_19(before_0_19: None) -> None:
    batch = batch_of(ROWS[:1])
    assert batch["cu_seqlens"].tolist() == [[0, 3, 8]]
    params = packing.packed_seq_params(batch)
    assert params.cu_seqlens_q.tolist() == [0, 3, 8]
    assert params.max_seqlen_q == 5


def test_upstream_merges_them_so() -> None:
    """What the stock script of this release makes of the collated form."""
    flattened = core_utils.flatten_batch_for_packed_sequences(batch_of(ROWS))
    assert flattened["cu_seqlens"].tolist() == [MERGED]


def test_no_packing() -> None:
    assert packing.packed_seq_params({"tokens": torch.zeros(1, 8)}) is None


def test_batches_that_upstream_takes() -> None:
    packing.check(micro_batch_size=1, pipeline_stages=4)
    packing.check(micro_batch_size=4, pipeline_stages=1)
    with pytest.raises(AscendPatchError, match="--micro-batch-size 2 was given, but with --sft and pipeline stages"):
        packing.check(micro_batch_size=2, pipeline_stages=2)


def test_batches_before_0_19(before_0_19: None) -> None:
    packing.check(micro_batch_size=1, pipeline_stages=4)
    with pytest.raises(AscendPatchError, match=r"--micro-batch-size 2 was given.*one packed sample at a time.*0\.19"):
        packing.check(micro_batch_size=2, pipeline_stages=1)


def test_context_parallelism_before_0_17(monkeypatch: pytest.MonkeyPatch) -> None:
    packing.check_context_parallel(4)
    monkeypatch.setattr(packing, "__version__", "0.16.1")
    packing.check_context_parallel(1)
    with pytest.raises(AscendPatchError, match=r"--context-parallel-size 4, but Megatron-LM 0\.16\.1 .* 0\.17\.1 or"):
        packing.check_context_parallel(4)


@pytest.mark.parametrize(
    ("sft", "first_stage", "mtp", "asked"),
    [(True, False, False, True), (True, True, False, False), (False, False, False, False), (True, False, True, False)],
)
def test_later_stages_are_told(
    sft: bool, first_stage: bool, mtp: bool, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron import training

    monkeypatch.setattr(training, "get_args", lambda: SimpleNamespace(sft=sft))
    monkeypatch.setattr(packing.mpu, "is_pipeline_first_stage", lambda: first_stage)
    sent = {"cu_seqlens": torch.tensor([[0, 8]]), "max_seqlen": torch.tensor([8])}
    calls = []

    def broadcast_data(keys, data, dtype):
        calls.append((keys, dtype))
        return sent

    monkeypatch.setattr(packing.tensor_parallel, "broadcast_data", broadcast_data)
    got = {"labels": 1, "cu_seqlens": None, "max_seqlen": None}
    batch = packing.tell_every_rank(lambda iterator, mtp_on_this_rank: dict(got))(None, mtp_on_this_rank=mtp)
    assert batch == ({**got, **sent} if asked else got)
    assert calls == [(["cu_seqlens", "max_seqlen"], torch.int32)] * asked
