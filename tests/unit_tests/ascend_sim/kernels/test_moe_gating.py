"""The gating operators against loops in float64."""

import pytest
import torch

from ascend_sim.kernels.moe_gating import npu_moe_gating_top_k, npu_moe_gating_top_k_softmax
from ascend_sim.kernels.moe_gating_v2 import npu_moe_gating_top_k_softmax_v2
from tests.unit_tests.ascend_sim.kernels.checks import BFLOAT16, FLOAT16, FLOAT32, assert_close, refuses


def softmax(x):
    exponents = torch.exp(x.double() - x.double().amax(-1, keepdim=True))
    return exponents / exponents.sum(-1, keepdim=True)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
@pytest.mark.parametrize("shape", [(13, 8), (2, 5, 6)])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_softmax_then_top_k(dtype, shape, k):
    x = torch.randn(shape).to(dtype)
    probs, experts, rows = npu_moe_gating_top_k_softmax(x, None, k)
    assert probs.dtype == dtype
    assert experts.dtype == rows.dtype == torch.int32
    expected = softmax(x)
    assert_close(probs, expected.sort(-1, descending=True).values[..., :k])
    assert_close(expected.gather(-1, experts.long()).to(dtype), expected.sort(-1, descending=True).values[..., :k])
    tokens = x.shape[:-1].numel()
    assert torch.equal(rows.view(tokens, k).long(), torch.arange(tokens * k).view(k, tokens).t())


def test_equal_probabilities_go_to_the_first_expert():
    _, experts, _ = npu_moe_gating_top_k_softmax(torch.zeros(3, 6), None, 2)
    assert torch.equal(experts, torch.tensor([[0, 1]] * 3).int())


def test_finished_rows_have_no_expert():
    finished = torch.tensor([False, True, False])
    _, experts, _ = npu_moe_gating_top_k_softmax(torch.randn(3, 6), finished, 2)
    assert (experts[1] == 6).all()
    assert (experts[[0, 2]] < 6).all()


def test_constraints_of_softmax_then_top_k():
    x = torch.randn(3, 6)
    for message, (changed, finished, k) in {
        "x is float64": (x.double(), None, 1),
        "x has 1 dimensions": (x[0], None, 1),
        "k is 7, allowed: 1 to 6": (x, None, 7),
        "k is 0, allowed": (x, None, 0),
        "k is 1025, allowed: 1 to 1024": (torch.randn(1, 2000), None, 1025),
        "finished is int64, allowed: bool": (x, torch.zeros(3).long(), 1),
        r"finished has shape \(2,\), needed: \(3,\)": (x, torch.zeros(2).bool(), 1),
    }.items():
        with refuses("npu_moe_gating_top_k_softmax", message):
            npu_moe_gating_top_k_softmax(changed, finished, k)


def choose(x, k, **changes):
    arguments = {
        "bias": None,
        "k_group": 1,
        "group_count": 1,
        "group_select_mode": 0,
        "renorm": 0,
        "norm_type": 0,
        "out_flag": True,
        "routed_scaling_factor": 1.0,
        "eps": 1e-20,
    }
    return npu_moe_gating_top_k(x, k, **(arguments | changes))


@pytest.mark.parametrize("norm_type", [0, 1])
@pytest.mark.parametrize("biased", [False, True])
def test_top_k_of_all_experts(norm_type, biased):
    x, bias = torch.randn(9, 12), torch.randn(12) if biased else None
    weights, experts, scores = choose(x, 3, bias=bias, norm_type=norm_type, routed_scaling_factor=2.5)
    expected = softmax(x) if norm_type == 0 else torch.sigmoid(x.double())
    assert_close(scores, expected)
    chosen = (expected + (bias.double() if biased else 0)).topk(3).indices
    assert torch.equal(experts.long(), chosen)
    picked = expected.gather(1, chosen)
    assert_close(weights, 2.5 * (picked / picked.sum(-1, keepdim=True) if norm_type else picked))


@pytest.mark.parametrize("mode", [0, 1])
def test_top_k_of_the_best_groups(mode):
    x = torch.randn(10, 24)
    weights, experts, _ = choose(x, 5, group_count=4, k_group=2, group_select_mode=mode, norm_type=1)
    scores = torch.sigmoid(x.double())
    for row, found in zip(scores, experts, strict=True):
        groups = row.view(4, 6)
        best = [float(group.max() if mode == 0 else group.topk(2).values.sum()) for group in groups]
        allowed = [e for g in sorted(range(4), key=lambda g: -best[g])[:2] for e in range(6 * g, 6 * g + 6)]
        assert found.tolist() == sorted(allowed, key=lambda e: -float(row[e]))[:5]
    assert_close(weights.sum(-1), torch.ones(10))


def test_scores_are_returned_when_asked_for():
    assert not choose(torch.randn(3, 8), 2, out_flag=False)[2].any()


def test_constraints_of_top_k():
    x = torch.randn(3, 12)
    for message, arguments in {
        "x has 3 dimensions": {"x": x[None]},
        "one data type is needed": {"bias": torch.zeros(12).half()},
        r"bias has shape \(3,\), needed: \(12,\)": {"bias": torch.zeros(3)},
        "renorm is 1, allowed: 0": {"renorm": 1},
        "norm_type is 2": {"norm_type": 2},
        "group_select_mode is 2": {"group_select_mode": 2},
        "x has 2049 experts": {"x": torch.randn(1, 2049)},
        "group_count is 5, needed: a divisor of 12": {"group_count": 5},
        "groups have 2 experts, needed: more than 2": {"group_count": 6},
        "padded to 32 exceed 2048": {"x": torch.randn(1, 300), "group_count": 100},
        "k_group is 3, allowed: 1 to 2": {"group_count": 2, "k_group": 3},
        "k is 9, allowed: 1 to 6": {"group_count": 2, "k": 9},
    }.items():
        with refuses("npu_moe_gating_top_k", message):
            choose(**({"x": x, "k": 2} | arguments))


@pytest.mark.simulator
def test_on_device(torch_npu, npu_device):
    x = torch.randn(7, 8)
    found = torch_npu.npu_moe_gating_top_k_softmax(x.to(npu_device), None, 2)
    for on_device, expected in zip(found, npu_moe_gating_top_k_softmax(x, None, 2), strict=True):
        assert on_device.device == npu_device
        assert torch.equal(on_device.cpu(), expected)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
@pytest.mark.parametrize("shape", [(11, 8), (2, 5, 6)])
@pytest.mark.parametrize("k", [1, 3])
def test_either_order(dtype, shape, k):
    x = torch.randn(shape).to(dtype)
    probs, experts, everything = npu_moe_gating_top_k_softmax_v2(x, k, None, 1, True)
    best = x.double().topk(k).values
    assert probs.dtype == dtype
    assert experts.dtype == torch.int32
    assert torch.equal(x.double().gather(-1, experts.long()), best)
    assert_close(probs, softmax(best))
    assert everything.shape == (0,)
    probs, experts, everything = npu_moe_gating_top_k_softmax_v2(x, k, None, 0, True)
    expected = npu_moe_gating_top_k_softmax(x, None, k)
    assert torch.equal(probs, expected[0])
    assert torch.equal(experts, expected[1])
    assert everything.dtype == FLOAT32
    assert_close(everything, softmax(x))
    assert npu_moe_gating_top_k_softmax_v2(x, k, None, 0, False)[2].shape == (0,)


@pytest.mark.parametrize("renorm", [0, 1])
def test_ties_and_finished_rows_in_either_order(renorm):
    finished = torch.tensor([False, True])
    _, experts, _ = npu_moe_gating_top_k_softmax_v2(torch.zeros(2, 6), 2, finished, renorm, False)
    assert experts.tolist() == [[0, 1], [6, 6]]


def test_constraints_of_either_order():
    x = torch.randn(3, 6)
    for message, (changed, k, finished, renorm) in {
        "x is float64": (x.double(), 1, None, 1),
        "x has 1 dimensions": (x[0], 1, None, 1),
        "k is 7, allowed: 1 to 6": (x, 7, None, 1),
        "renorm is 2, allowed: 0, 1": (x, 1, None, 2),
        "finished is int64, allowed: bool": (x, 1, torch.zeros(3).long(), 1),
        r"finished has shape \(2,\), needed: \(3,\)": (x, 1, torch.zeros(2).bool(), 1),
    }.items():
        with refuses("npu_moe_gating_top_k_softmax_v2", message):
            npu_moe_gating_top_k_softmax_v2(changed, k, finished, renorm, False)
