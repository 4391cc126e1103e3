"""Permutation on the NPU against float64, forward and backward, there, back and both."""

from functools import partial

import pytest
import torch
from torch import Tensor

from ascend_patch.ops.permute import reference
from ascend_patch.ops.registry import Unsupported
from ascend_patch.ops.routing_map import set_experts_per_token
from tests.unit_tests.ops.checks import TOLERANCES, relative_error, results_and_gradients
from tests.unit_tests.ops.npu_checks import check_on_npu

pytestmark = pytest.mark.npu

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
DTYPES = [(FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16), (BFLOAT16, FLOAT32)]
"""Of tokens and probabilities."""


def top_k_map(tokens: int, experts: int, k: int) -> Tensor:
    chosen = torch.rand(tokens, experts).topk(k, dim=1).indices
    return torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, chosen, True)


def all_to_one_map(tokens: int, experts: int) -> Tensor:
    routing_map = torch.zeros(tokens, experts, dtype=torch.bool)
    routing_map[:, experts - 2] = True
    return routing_map


MAPS = {
    "top 2": partial(top_k_map, 13, 8, 2),
    "one token": partial(top_k_map, 1, 3, 2),
    "all experts": partial(top_k_map, 4, 3, 3),
    "all to one": partial(all_to_one_map, 7, 4),
    "one expert": partial(torch.ones, 5, 1, dtype=torch.bool),
}


@pytest.fixture(params=MAPS, ids=lambda name: name.replace(" ", "_"))
def routing_map(request) -> Tensor:
    return MAPS[request.param]()


def promised(routing_map: Tensor, device: torch.device) -> Tensor:
    on_device = routing_map.to(device)
    set_experts_per_token(on_device, int(routing_map[0].sum()))
    return on_device


def joined(permute, routing_map):
    """permute as a function of its differentiable inputs with one result."""

    def run(tokens: Tensor, probs: Tensor) -> Tensor:
        permuted, permuted_probs, _ = permute(tokens, routing_map, probs, int(routing_map.sum()))
        return permuted * permuted_probs.unsqueeze(-1)

    return run


@pytest.mark.parametrize(("dtype", "probs_dtype"), DTYPES)
@pytest.mark.parametrize("hidden", [7, 64])
def test_permute_and_gradients(npu, npu_device, dtype, probs_dtype, hidden, routing_map):
    check_on_npu(
        joined(npu.permute, promised(routing_map, npu_device)),
        joined(reference.permute, routing_map),
        [torch.randn(len(routing_map), hidden).to(dtype), torch.rand(routing_map.shape).to(probs_dtype)],
        npu_device,
        tolerance=2e-2 if dtype == BFLOAT16 else None,  # a product of rounded factors, rounded before it is summed
    )


@pytest.mark.parametrize(("dtype", "probs_dtype"), DTYPES)
def test_rows_are_in_the_order_of_the_reference(npu, npu_device, dtype, probs_dtype, routing_map):
    tokens, probs = torch.randn(len(routing_map), 5).to(dtype), torch.rand(routing_map.shape).to(probs_dtype)
    count = int(routing_map.sum())
    found = npu.permute(tokens.to(npu_device), promised(routing_map, npu_device), probs.to(npu_device), count)
    expected = reference.permute(tokens, routing_map, probs, count)
    assert torch.equal(found[0].cpu(), expected[0])
    assert torch.equal(found[1].cpu(), expected[1])
    rows = found[2]
    assert rows.dtype == torch.int32 and sorted(rows.tolist()) == list(range(count))


def test_permute_without_probs(npu, npu_device):
    routing_map = promised(top_k_map(5, 4, 2), npu_device)
    permuted, probs, _ = npu.permute(torch.randn(5, 3, device=npu_device), routing_map, None, 10)
    assert probs is None
    assert permuted.shape == (10, 3)


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize(("dtype", "probs_dtype"), DTYPES)
def test_one_result_alone_has_its_gradient(npu, npu_device, used, dtype, probs_dtype):
    routing_map = top_k_map(6, 5, 2)
    inputs = [torch.randn(6, 4).to(dtype), torch.rand(6, 5).to(probs_dtype)]
    wide = [t.double() for t in inputs]
    grad = torch.randn(12, 4)[:, 0] if used else torch.randn(12, 4)

    def run(permute, routing_map, other):
        def one(t: Tensor) -> Tensor:
            tokens, probs = (other, t) if used else (t, other)
            return permute(tokens, routing_map, probs, 12)[used]

        return one

    _, (expected,) = results_and_gradients(run(reference.permute, routing_map, wide[1 - used]), [wide[used]], grad)
    on_npu = [t.to(npu_device) for t in inputs]
    function = run(npu.permute, promised(routing_map, npu_device), on_npu[1 - used].requires_grad_())
    _, (found,) = results_and_gradients(function, [on_npu[used]], grad.to(npu_device))
    assert relative_error(found.cpu(), expected) <= TOLERANCES[inputs[used].dtype]


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("weighted", [False, True])
def test_unpermute_and_gradients(npu, npu_device, dtype, weighted, routing_map):
    count, shape = int(routing_map.sum()), (len(routing_map), 7)
    on_npu = promised(routing_map, npu_device)
    rows = npu.permute(torch.zeros(shape, device=npu_device), on_npu, None, count)[2]
    sorted_indices = reference.permute(torch.zeros(shape), routing_map, None, count)[2]
    inputs = [torch.randn(count, 7).to(dtype)]
    if weighted:
        inputs.append(torch.rand(routing_map.shape).to(dtype))
    check_on_npu(
        lambda permuted, probs=None: npu.unpermute(permuted, rows, shape, probs, on_npu),
        lambda permuted, probs=None: reference.unpermute(permuted, sorted_indices, shape, probs, routing_map),
        inputs,
        npu_device,
    )


def test_float32_probs_of_bfloat16_copies(npu, npu_device):
    routing_map = top_k_map(11, 4, 2)
    on_npu = promised(routing_map, npu_device)
    rows = npu.permute(torch.zeros(11, 8, device=npu_device), on_npu, None, 22)[2]
    sorted_indices = reference.permute(torch.zeros(11, 8), routing_map, None, 22)[2]
    check_on_npu(
        lambda permuted, probs: npu.unpermute(permuted, rows, (11, 8), probs, on_npu),
        lambda permuted, probs: reference.unpermute(permuted, sorted_indices, (11, 8), probs, routing_map),
        [torch.randn(22, 8).bfloat16(), torch.rand(11, 4)],
        npu_device,
    )


def test_there_and_back_is_a_token_as_often_as_it_was_copied(npu, npu_device, routing_map):
    tokens = torch.randn(len(routing_map), 6)
    on_npu = promised(routing_map, npu_device)
    permuted, _, rows = npu.permute(tokens.to(npu_device), on_npu, None, int(routing_map.sum()))
    found = npu.unpermute(permuted, rows, tokens.shape, None, on_npu)
    torch.testing.assert_close(found.cpu(), tokens * routing_map[0].sum())


def test_non_contiguous_tokens_and_gradients(npu, npu_device):
    routing_map = top_k_map(7, 4, 2)
    on_npu = promised(routing_map, npu_device)
    check_on_npu(
        lambda x: npu.permute(x.t(), on_npu, None, 14)[0].t(),
        lambda x: reference.permute(x.t(), routing_map, None, 14)[0].t(),
        [torch.randn(5, 7)],
        npu_device,
    )


def test_sort_chunks(npu, npu_device):
    sizes, order = [3, 0, 2, 4], [2, 0, 3, 1]
    check_on_npu(
        lambda x, probs: (lambda rows, p: rows * p.unsqueeze(-1))(*npu.sort_chunks(x, sizes, order, probs)),
        lambda x, probs: (lambda rows, p: rows * p.unsqueeze(-1))(*reference.sort_chunks(x, sizes, order, probs)),
        [torch.randn(9, 5), torch.rand(9)],
        npu_device,
    )


def test_what_the_operator_does_not_take(npu, npu_device):
    tokens, unknown = torch.randn(4, 3, device=npu_device), top_k_map(4, 5, 2).to(npu_device)
    with pytest.raises(Unsupported, match="not known to give all tokens equally many"):
        npu.permute(tokens, unknown, None, 8)
    known = promised(top_k_map(4, 5, 2), npu_device)
    with pytest.raises(Unsupported, match="more or fewer rows than copies"):
        npu.permute(tokens, known, None, 7)
    with pytest.raises(Unsupported, match="float64"):
        npu.permute(tokens.double(), known, None, 8)
    with pytest.raises(Unsupported, match="float64"):
        npu.permute(tokens, known, torch.rand(4, 5, dtype=torch.float64, device=npu_device), 8)
    with pytest.raises(Unsupported, match="of 0 tokens"):
        set_experts_per_token(none := torch.zeros(0, 5, dtype=torch.bool, device=npu_device), 2)
        npu.permute(tokens[:0], none, None, 0)
    with pytest.raises(Unsupported, match="another variant permuted"):
        npu.unpermute(tokens, torch.arange(4, device=npu_device), (4, 3), None, known)
    with pytest.raises(ValueError, match="needs the routing_map"):
        npu.unpermute(tokens, torch.arange(4, dtype=torch.int32, device=npu_device), (4, 3))
