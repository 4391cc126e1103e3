"""The order of the ranks is upstream's."""

from itertools import accumulate, pairwise

import pytest
import torch
from megatron.core import utils as upstream

from ascend_patch.context_parallel.layout import Pieces, positions_of_rank
from ascend_patch.ops.rotary.layout import packed_positions


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


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("pieces", [(1,), (7,), (1, 3, 2), (2, 0, 5, 0), (0,), (1,) * 9])
def test_positions_of_packed_sequences(ranks, pieces):
    """As each token would say itself: the piece it is in, counted from the nearer end of its sequence, is its rank."""
    ends = [0, *accumulate(2 * ranks * n for n in pieces)]
    expected = [[] for _ in range(ranks)]
    for length, (start, end) in zip(pieces, pairwise(ends), strict=True):
        for position in range(start, end):
            piece = (position - start) // length
            expected[min(piece, 2 * ranks - 1 - piece)].append(position)
    found = [positions_of_rank(ends, ranks, rank) for rank in range(ranks)]
    assert [one.tolist() for one in found] == expected
    assert all(one.dtype == torch.int64 for one in found)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_rotary_positions_are_those(ranks):
    ends = torch.tensor([0, *accumulate(2 * ranks * n for n in (2, 1, 4))])
    in_sequence = torch.cat([torch.arange(length) for length in ends.diff().tolist()])
    for rank in range(ranks):
        rotary = packed_positions(int(ends[-1]) // ranks, ends, ranks, rank, available=100)
        assert torch.equal(rotary, in_sequence[positions_of_rank(ends.tolist(), ranks, rank)])


def test_a_length_that_cannot_be_cut():
    with pytest.raises(ValueError, match="A sequence of 6 tokens .* 2 context parallel ranks: .* multiple of 4"):
        Pieces.of([4, 6], 2)
    with pytest.raises(ValueError, match="A sequence of 6 tokens"):
        positions_of_rank([0, 4, 10], 2, 0)
