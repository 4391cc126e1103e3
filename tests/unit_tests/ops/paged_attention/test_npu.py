"""Paged attention on the NPU against float64: the head shapes of Mixtral, prefill and decode in one batch."""

from itertools import accumulate

import pytest
import torch

from ascend_patch.ops.paged_attention import reference
from ascend_patch.ops.registry import Unsupported
from tests.unit_tests.ops.checks import relative_error

pytestmark = pytest.mark.npu

BLOCK = 128
LENGTHS = [(1, 1), (37, 37), (1, 300), (5, 133), (1, BLOCK)]
HEADS = {"8x7B": (32, 8, 128), "8x22B": (48, 8, 128), "one group": (4, 1, 64)}


def batch(lengths, heads, groups, size, dtype=torch.bfloat16):
    """Query, empty caches, block table, and each request's keys and values with their slots."""
    blocks = [-(-keys // BLOCK) for _, keys in lengths]
    free = torch.randperm(sum(blocks) + 2).split([*blocks, 2])[:-1]
    table = torch.full((len(lengths), max(blocks)), -1, dtype=torch.int32)
    slots = []
    for row, own, (_, keys) in zip(table, free, lengths, strict=True):
        row[: len(own)] = own
        slots.append((own.unsqueeze(1) * BLOCK + torch.arange(BLOCK)).flatten()[:keys])
    slots = torch.cat(slots)
    key, value = (torch.randn(len(slots), groups, size).to(dtype) for _ in range(2))
    query = torch.randn(sum(queries for queries, _ in lengths), heads, size).to(dtype)
    caches = [torch.zeros(sum(blocks) + 2, BLOCK, groups, size, dtype=dtype) for _ in range(2)]
    cu_seqlens_q = [0, *accumulate(queries for queries, _ in lengths)]
    return query, key, value, caches, slots, table, cu_seqlens_q, [keys for _, keys in lengths]


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, (40, 0)])
def test_prefill_and_decode(npu, npu_device, model, dtype, window):
    query, key, value, caches, slots, table, cu_seqlens_q, seqlens_k = batch(LENGTHS, *HEADS[model], dtype)
    on_device = [cache.to(npu_device) for cache in caches]
    npu.store_keys_values(key.to(npu_device), value.to(npu_device), *on_device, slots.to(npu_device))
    reference.store_keys_values(key, value, *caches, slots)
    for cache, expected in zip(on_device, caches, strict=True):
        assert torch.equal(cache.cpu(), expected)
    padded = torch.cat([query, query.new_ones(3, *query.shape[1:])])
    options = {"scale": 0.1, "window": window}
    found = npu.paged_attention(
        padded.to(npu_device), *on_device, table.to(npu_device), cu_seqlens_q, seqlens_k, **options
    ).cpu()
    wide = [cache.double() for cache in caches]
    expected = reference.paged_attention(query.double(), *wide, table, cu_seqlens_q, seqlens_k, **options)
    assert relative_error(found[: len(query)], expected) <= 2e-2
    assert not found[len(query) :].any()


def test_requests_without_queries(npu, npu_device):
    query, key, value, caches, slots, table, cu_seqlens_q, seqlens_k = batch([(2, 5), (0, 6), (1, 3)], 4, 2, 64)
    reference.store_keys_values(key, value, *caches, slots)
    given = [t.to(npu_device) for t in (query, *caches, table)]
    found = npu.paged_attention(*given, cu_seqlens_q, seqlens_k, scale=0.2).cpu()
    wide = [t.double() for t in (query, *caches)]
    assert relative_error(found, reference.paged_attention(*wide, table, cu_seqlens_q, seqlens_k, scale=0.2)) <= 2e-2


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((4, 2, 64, BLOCK), torch.float32, "dtype float32"),
        ((4, 2, 48, BLOCK), torch.bfloat16, "head size 48"),
        ((4, 2, 64, 96), torch.bfloat16, "blocks of 96"),
    ],
)
def test_what_the_operator_does_not_take(npu, npu_device, shape, dtype, told):
    heads, groups, size, block = shape
    query = torch.zeros(1, heads, size, dtype=dtype, device=npu_device)
    cache = torch.zeros(2, block, groups, size, dtype=dtype, device=npu_device)
    table = torch.zeros(1, 1, dtype=torch.int32, device=npu_device)
    with pytest.raises(Unsupported, match=told):
        npu.paged_attention(query, cache, cache, table, [0, 1], [1], scale=1.0)
