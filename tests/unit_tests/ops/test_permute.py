"""Permutation of tokens and of chunks: each variant against float64 and against upstream."""

from functools import partial

import pytest
import torch
from megatron.core.transformer.moe import moe_utils
from torch import Tensor

from ascend_patch.ops import permute as package
from ascend_patch.ops.permute import reference
from ascend_patch.ops.permute import torch as fast
from tests.unit_tests.ops.checks import check_against_float64, check_deterministic_backward, relative_error

VARIANTS = [reference, fast]


def top_k_map(tokens: int, experts: int, k: int) -> Tensor:
    chosen = torch.rand(tokens, experts).topk(k, dim=1).indices
    return torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, chosen, True)


def uneven_map(tokens: int, experts: int) -> Tensor:
    """Tokens with anything from no expert to all of them, and an expert without tokens."""
    routing_map = torch.rand(tokens, experts) < 0.4
    routing_map[:, 1] = False
    routing_map[0] = False
    return routing_map


MAPS = {
    "top 2": partial(top_k_map, 13, 5, 2),
    "one token": partial(top_k_map, 1, 3, 2),
    "no tokens": partial(top_k_map, 0, 3, 2),
    "all experts": partial(top_k_map, 4, 3, 3),
    "uneven": partial(uneven_map, 9, 4),
    "nothing routed": partial(torch.zeros, 6, 3, dtype=torch.bool),
}


@pytest.fixture(params=MAPS, ids=lambda name: name.replace(" ", "_"))
def routing_map(request) -> Tensor:
    return MAPS[request.param]()


def joined(module, routing_map, num_out_tokens):
    """permute as a function of its differentiable inputs with one result."""

    def run(tokens: Tensor, probs: Tensor) -> Tensor:
        permuted, permuted_probs, _ = module.permute(tokens, routing_map, probs, num_out_tokens)
        return permuted * permuted_probs.unsqueeze(-1)

    return run


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_permute_and_gradients(variant, dtype, routing_map):
    count = int(routing_map.sum())
    tokens, probs = torch.randn(len(routing_map), 7).to(dtype), torch.rand(routing_map.shape).to(dtype)
    check_against_float64(
        joined(variant, routing_map, count),
        joined(reference, routing_map, count),
        tokens,
        probs,
        # joined() rounds a product of rounded factors before it is summed
        tolerance=2e-2 if dtype == torch.bfloat16 else None,
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("extra", [-2, 0, 3])
@pytest.mark.parametrize("name", [name for name in MAPS if name != "no tokens"])  # upstream divides by them
def test_permute_is_as_upstream(variant, extra, name):
    """Also when fewer or more rows are asked for than there are routed copies."""
    routing_map = MAPS[name]()
    count = min(max(0, int(routing_map.sum()) + extra), routing_map.numel())
    tokens, probs = torch.randn(len(routing_map), 7), torch.rand(routing_map.shape)
    expected = moe_utils.permute(tokens, routing_map, probs, num_out_tokens=count)[:3]
    for found, wanted in zip(variant.permute(tokens, routing_map, probs, count), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_permute_without_probs(variant):
    permuted, probs, sorted_indices = variant.permute(torch.randn(5, 3), top_k_map(5, 4, 2), None, 10)
    assert probs is None
    assert permuted.shape == (10, 3)
    assert sorted_indices.dtype == torch.int64


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_unpermute_and_gradients(variant, dtype, weighted, routing_map):
    count = int(routing_map.sum())
    shape = (len(routing_map), 7)
    sorted_indices = reference.permute(torch.zeros(shape), routing_map, None, count)[2]
    permuted = torch.randn(count, 7).to(dtype)

    def run(module, permuted, probs=None):
        return module.unpermute(permuted, sorted_indices, shape, probs, routing_map)

    inputs = [permuted, torch.rand(routing_map.shape).to(dtype)] if weighted else [permuted]
    check_against_float64(partial(run, variant), partial(run, reference), *inputs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_unpermute_is_as_upstream(variant, weighted, routing_map):
    count = int(routing_map.sum())
    shape = torch.Size((len(routing_map), 7))
    sorted_indices = reference.permute(torch.zeros(shape), routing_map, None, count)[2]
    permuted = torch.randn(count, 7)
    probs = torch.rand(routing_map.shape) if weighted else None
    expected = moe_utils.unpermute(permuted, sorted_indices, shape, probs, routing_map)
    torch.testing.assert_close(variant.unpermute(permuted, sorted_indices, shape, probs, routing_map), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_copies_with_float32_probs(variant):
    routing_map = top_k_map(11, 4, 2)
    permuted, probs = torch.randn(22, 8).bfloat16(), torch.rand(11, 4)
    sorted_indices = reference.permute(torch.zeros(11, 8), routing_map, None, 22)[2]
    restored = variant.unpermute(permuted, sorted_indices, (11, 8), probs, routing_map)
    expected = reference.unpermute(permuted.double(), sorted_indices, (11, 8), probs.double(), routing_map)
    assert restored.dtype == torch.bfloat16
    assert relative_error(restored, expected) <= 1e-2


def test_non_contiguous_tokens_and_gradients():
    routing_map = top_k_map(7, 4, 2)
    check_against_float64(
        lambda x: fast.permute(x, routing_map, None, 14)[0].t(),
        lambda x: reference.permute(x, routing_map, None, 14)[0].t(),
        torch.randn(5, 7).t(),
    )


def test_gradcheck():
    routing_map = uneven_map(6, 4)
    count = int(routing_map.sum())
    tokens = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    probs = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)

    def there_and_back(tokens, probs):
        permuted, _, sorted_indices = fast.permute(tokens, routing_map, probs, count)
        return fast.unpermute(permuted.square(), sorted_indices, (6, 3), probs, routing_map)

    assert torch.autograd.gradcheck(there_and_back, (tokens, probs))


def test_backward_is_deterministic():
    routing_map = top_k_map(50, 8, 4)
    check_deterministic_backward(lambda x: fast.permute(x, routing_map, None, 200)[0], torch.randn(50, 16).bfloat16())


CHUNKS = {
    "shuffled": ([3, 0, 2, 4], [2, 0, 3, 1]),
    "ascending": ([3, 0, 2, 4], [0, 1, 2, 3]),
    "only empty chunks move": ([3, 0, 2, 0], [1, 3, 0, 2]),
    "all empty": ([0, 0], [1, 0]),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("sizes", "order"), CHUNKS.values(), ids=CHUNKS)
def test_sort_chunks(variant, sizes, order):
    x, probs = torch.randn(sum(sizes), 5), torch.rand(sum(sizes))
    expected = moe_utils.sort_chunks_by_idxs(x, torch.tensor(sizes), torch.tensor(order), probs)
    for found, wanted in zip(variant.sort_chunks(x, sizes, order, probs), expected, strict=True):
        assert torch.equal(found, wanted)
    assert variant.sort_chunks(x, sizes, order)[1] is None
    check_against_float64(
        lambda t: variant.sort_chunks(t, sizes, order)[0] * 1.0,
        lambda t: reference.sort_chunks(t, sizes, order)[0] * 1.0,
        x,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_sort_chunks_returns_memory_of_its_own(variant):
    """Whatever is empty: upstream's overlap of micro batches takes the input's memory away."""
    x = torch.randn(5, 3)
    found, _ = variant.sort_chunks(x, [2, 0, 3, 0], [0, 2, 1, 3])
    assert torch.equal(found, x) and found.data_ptr() != x.data_ptr()


def test_sort_chunks_takes_tensors():
    x = torch.arange(5.0)
    found, _ = package.sort_chunks(x, torch.tensor([2, 3]), torch.tensor([1, 0]))
    assert found.tolist() == [2.0, 3.0, 4.0, 0.0, 1.0]


def test_bad_arguments():
    tokens, routing_map = torch.randn(4, 3), top_k_map(4, 5, 2)
    with pytest.raises(ValueError, match=r"allowed are \[T, H\] and \[T, E\]"):
        package.permute(tokens[:3], routing_map, None, 8)
    with pytest.raises(ValueError, match="they must agree"):
        package.permute(tokens, routing_map, torch.rand(4, 4), 8)
    indices = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(ValueError, match="needs the routing_map"):
        package.unpermute(torch.randn(8, 3), indices, (4, 3), probs=torch.rand(4, 5))
    with pytest.raises(ValueError, match="one index per row"):
        package.unpermute(torch.randn(8, 3), indices[:7], (4, 3))
    with pytest.raises(ValueError, match="restore_shape is"):
        package.unpermute(torch.randn(8, 3), indices, (4, 2))
    with pytest.raises(ValueError, match="must name each chunk once"):
        package.sort_chunks(tokens, [2, 2], [0, 0])
    with pytest.raises(ValueError, match="must add up to 4"):
        package.sort_chunks(tokens, [2, 3], [0, 1])
