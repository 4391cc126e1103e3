"""A rank's part of a packed sample, and of which upstream's functions it takes the place."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core import utils as upstream
from megatron.core.packed_seq_params import PackedSeqParams

from ascend_patch.context_parallel.batch import part_of_packed_batch
from ascend_patch.features import context_parallel

RANKS = 2
ENDS = [0, 4, 16, 24]
PARTS = ([0, 3, 4, 5, 6, 13, 14, 15, 16, 17, 22, 23], [1, 2, 7, 8, 9, 10, 11, 12, 18, 19, 20, 21])


@pytest.fixture
def batch() -> dict:
    tokens = torch.arange(24).unsqueeze(0)
    return {
        "tokens": tokens,
        "labels": tokens + 1,
        "loss_mask": tokens.float() / 2,
        "position_ids": None,  # not of this pipeline stage
        "attention_mask": None,
        "max_seqlen": torch.tensor([12]),
    }


def check(part: dict, rank: int) -> None:
    positions = torch.tensor([PARTS[rank]])
    assert torch.equal(part["tokens"], positions)
    assert torch.equal(part["labels"], positions + 1)
    assert torch.equal(part["loss_mask"], positions.float() / 2)
    assert part["position_ids"] is None
    assert part["max_seqlen"].tolist() == [12]


@pytest.mark.parametrize("rank", range(RANKS))
def test_part(batch: dict, rank: int) -> None:
    check(part_of_packed_batch(batch, ENDS, RANKS, rank), rank)
    assert batch["tokens"].shape == (1, 24)  # it is not changed


def test_one_rank_has_all(batch: dict) -> None:
    assert part_of_packed_batch(batch, [0, 5, 24], 1, 0) is batch  # of any lengths


@pytest.mark.parametrize("ends", [[0, 4, 16], [0, 4, 28]])
def test_sequences_that_do_not_make_up_the_batch(batch: dict, ends: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"tokens of a packed batch is of shape \(1, 24\), .* end at {ends[-1]}"):
        part_of_packed_batch(batch, ends, RANKS, 0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rank", range(RANKS))
def test_upstream_asks_for_it(batch: dict, rank: int, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0.18 on; ``cu_seqlens_padded``, where it is given, says what is cut."""
    monkeypatch.setattr(
        upstream, "_get_batch_on_this_cp_rank_per_document_balancing", context_parallel.part_of_packed_batch
    )
    ends, short = torch.tensor([ENDS]), torch.tensor([[0, 3, 14, 20]])
    batch |= {"cu_seqlens": short if padded else ends, "cu_seqlens_padded": ends if padded else None}
    group = SimpleNamespace(size=lambda: RANKS, rank=lambda: rank)
    part = upstream.get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=group)
    check(part, rank)
    assert part["cu_seqlens"] is batch["cu_seqlens"]


@pytest.mark.parametrize("rank", range(RANKS))
def test_0_17_asks_for_it(batch: dict, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole(batch, cu_seqlens, cu_seqlens_padded, max_seqlen, cp_size, cp_rank):
        assert (cp_size, cp_rank) == (1, 0)
        return batch, PackedSeqParams(qkv_format="thd", cu_seqlens_q=cu_seqlens)

    ends = torch.tensor(ENDS)
    function = context_parallel.get_thd_batch_on_this_cp_rank(whole)
    part, params = function(batch, ends, None, batch["max_seqlen"], cp_size=RANKS, cp_rank=rank)
    check(part, rank)
    assert params.cu_seqlens_q is ends
    monkeypatch.setattr("megatron.core.parallel_state.get_context_parallel_world_size", lambda: RANKS)
    monkeypatch.setattr("megatron.core.parallel_state.get_context_parallel_rank", lambda: rank)
    check(function(batch, ends, ends, batch["max_seqlen"])[0], rank)
