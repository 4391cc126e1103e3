"""The order of the ranks is upstream's."""

from itertools import pairwise

import pytest
import torch
from megatron.core import utils as upstream

from ascend_patch.context_parallel.layout import Pieces


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_as_upstream_splits_a_batch(ranks, monkeypatch):
    tokens = torch.arange(2 * 12 * ranks).view(2, -1)
    pieces = Pieces.of([tokens.shape[1]], ranks)
    parts = pieces.to_ranks(tokens.t()).chunk(ranks)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: ranks)
    for rank, part in enumerate(parts):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group, rank=rank: rank)
        batch = {"tokens": tokens, "cu_seqlens": None}
        split = upstream.get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=object())
        assert torch.equal(split["tokens"].t(), part)
    assert torch.equal(pieces.to_sequence(torch.cat(parts)), tokens.t())


@pytest.mark.parametrize("ranks", [2, 3])
def test_packed_sequences_are_cut_one_by_one(ranks):
    lengths = [2 * ranks * n for n in (1, 3, 2)]
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    tokens = torch.arange(ends[-1])
    pieces = Pieces.of(lengths, ranks)
    parts = pieces.to_ranks(tokens).chunk(ranks)
    for rank, part in enumerate(parts):
        halves = []
        for start, end in pairwise(ends):
            cut = tokens[start:end].chunk(2 * ranks)
            halves += [cut[rank], cut[2 * ranks - 1 - rank]]
        assert torch.equal(part, torch.cat(halves))
    assert torch.equal(pieces.to_sequence(torch.cat(parts)), tokens)


def test_a_length_that_cannot_be_cut():
    with pytest.raises(ValueError, match="A sequence of 6 tokens .* 2 context parallel ranks: .* multiple of 4"):
        Pieces.of([4, 6], 2)
