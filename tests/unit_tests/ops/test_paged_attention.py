"""Paged attention: every variant against float64 attention over the requests' own keys, with shuffled blocks."""

from itertools import accumulate

import pytest
import torch

from ascend_patch.ops import paged_attention as package
from ascend_patch.ops.attention import reference as plain
from ascend_patch.ops.paged_attention import reference
from ascend_patch.ops.paged_attention import torch as fast
from tests.unit_tests.ops.checks import relative_error

VARIANTS = [reference, fast]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
BLOCK = 4


class Requests:
    """Requests of ``(queries, keys)`` each, whose keys and values are in a paged cache and, for the test, apart."""

    def __init__(
        self, *lengths: tuple[int, int], heads: int = 6, groups: int = 2, size: int = 8, dtype=torch.float32, mix=True
    ) -> None:
        self.keys = [torch.randn(keys, groups, size).to(dtype) for _, keys in lengths]
        self.values = [torch.randn_like(key) for key in self.keys]
        self.queries = [torch.randn(queries, heads, size).to(dtype) for queries, _ in lengths]
        self.seqlens_k = [keys for _, keys in lengths]
        self.cu_seqlens_q = [0, *accumulate(queries for queries, _ in lengths)]
        blocks = [-(-keys // BLOCK) for keys in self.seqlens_k]
        free = (torch.randperm if mix else torch.arange)(sum(blocks) + 3).tolist()
        self.table = torch.full((len(lengths), max(blocks) + 1), -1, dtype=torch.int32)
        # What is not a request's own must not be read: it would turn everything into NaN.
        self.key_cache = torch.full((len(free), BLOCK, groups, size), float("nan"), dtype=dtype)
        self.value_cache = self.key_cache.clone()
        for i, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            own = torch.tensor([free.pop(0) for _ in range(blocks[i])], dtype=torch.int64)
            self.table[i, : len(own)] = own
            slots = (own.unsqueeze(1) * BLOCK + torch.arange(BLOCK)).flatten()[: len(key)]
            package.store_keys_values(key, value, self.key_cache, self.value_cache, slots)

    def run(self, variant, padding: int = 0, **options) -> torch.Tensor:
        query = torch.cat([*self.queries, self.queries[0].new_full((padding, *self.queries[0].shape[1:]), 7.0)])
        caches = (self.key_cache, self.value_cache)
        return variant.paged_attention(query, *caches, self.table, self.cu_seqlens_q, self.seqlens_k, **options)

    def expected(self, scale: float, window=None) -> torch.Tensor:
        """Each request by itself, in float64."""
        results = []
        for query, key, value in zip(self.queries, self.keys, self.values, strict=True):
            tensors = (t.double().unsqueeze(1) for t in (query, key, value))
            attended = plain.attention(*tensors, scale=scale, causal=True, window=window)
            results.append(attended.view(query.shape))
        return torch.cat(results)


def check(variant, requests: Requests, **options) -> None:
    options = {"scale": 0.3} | options
    expected = requests.expected(**options)
    found = requests.run(variant, **options)
    assert found.dtype == requests.queries[0].dtype
    assert relative_error(found, expected) <= TOLERANCES[found.dtype]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("mix", [True, False], ids=["shuffled", "in order"])
@pytest.mark.parametrize("window", [None, (5, 0), (0, 0), (100, 0), (-1, 0)])
def test_prefill_and_decode_in_one_batch(variant, dtype, mix, window):
    lengths = [(1, 1), (7, 7), (1, 13), (3, 11), (1, BLOCK), (BLOCK, 2 * BLOCK)]
    check(variant, Requests(*lengths, dtype=dtype, mix=mix), window=window)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (6, 3), (5, 1)])
def test_grouped_queries(variant, heads, groups):
    check(variant, Requests((1, 9), (5, 9), heads=heads, groups=groups))


@pytest.mark.parametrize("variant", VARIANTS)
def test_requests_without_queries_and_padding(variant):
    requests = Requests((2, 5), (0, 6), (1, 3))
    found = requests.run(variant, padding=3, scale=0.3)
    assert relative_error(found[:3], requests.expected(0.3)) <= TOLERANCES[torch.float32]
    assert not found[3:].any()


@pytest.mark.parametrize("blocks", [[0, 1, 2], [2, 1, 0], [4, 2, 3], [0, 1, 3]], ids=str)
@pytest.mark.parametrize("lengths", [(3, 3, 3), (3, 3, 2), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("window", [None, (1, 0), (3, 0)])
def test_requests_of_one_block_that_decode(monkeypatch, blocks, lengths, window):
    requests = Requests(*((1, keys) for keys in lengths), mix=False)
    order = torch.tensor(blocks)
    for cache in (requests.key_cache, requests.value_cache):
        before = cache.clone()
        cache.fill_(float("nan"))
        cache[order] = before[: len(blocks)]
    requests.table[:, 0] = order
    calls = []
    one_call = fast._one_token_each
    monkeypatch.setattr(fast, "_one_token_each", lambda *args: calls.append(args) or one_call(*args))
    check(fast, requests, window=window)
    equal, in_a_row, whole = len(set(lengths)) == 1, blocks != [0, 1, 3], window is None or window[0] >= lengths[0] - 1
    assert len(calls) == (equal and in_a_row and whole)


@pytest.mark.parametrize("length", [(3, 3), (5, 5), (2, 9), (9, 9)], ids=str)
@pytest.mark.parametrize("window", [None, (2, 0), (100, 0)])
@pytest.mark.parametrize("mix", [True, False], ids=["shuffled", "in order"])
def test_prompts_of_one_length_share_a_call(monkeypatch, length, window, mix):
    calls = []
    several = fast._several
    monkeypatch.setattr(fast, "_several", lambda *args: calls.append(args) or several(*args))
    check(fast, Requests(length, length, length, mix=mix), window=window)
    assert len(calls) == 1
    check(fast, Requests(length, length, (length[0], length[1] + 1), mix=mix), window=window)
    assert len(calls) == 4


def test_errors():
    requests = Requests((2, 5), (1, 3))
    requests.seqlens_k = [1, 3]
    with pytest.raises(ValueError, match="request 0 has queries 0 to 2 of 3 and 1 keys"):
        requests.run(package, scale=1.0)
    requests.seqlens_k = [5]
    with pytest.raises(ValueError, match="of 2, 1 and 2 requests"):
        requests.run(package, scale=1.0)
    requests = Requests((2, 5), heads=6, groups=2)
    requests.queries[0] = requests.queries[0][:, :5]
    with pytest.raises(ValueError, match="5 query heads of size 8 and 2 key heads"):
        requests.run(package, scale=1.0)
    with pytest.raises(ValueError, match="twice"):
        package.paged_attention(torch.zeros(3, 4), *2 * [requests.key_cache], requests.table, [0], [], scale=1.0)
    key = torch.zeros(2, 2, 8)
    with pytest.raises(ValueError, match="and \\(3,\\)"):
        package.store_keys_values(key, key, requests.key_cache, requests.value_cache, torch.arange(3))
