"""Rotary position embedding on the NPU against float64."""

from functools import partial

import pytest
import torch

from ascend_patch.ops.registry import Unsupported
from ascend_patch.ops.rotary import reference
from tests.unit_tests.ops.npu_checks import check_on_npu

pytestmark = pytest.mark.npu

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def angles(positions: int, r: int, interleaved: bool) -> torch.Tensor:
    """``[positions, 1, 1, r]``, each angle twice."""
    frequencies = 10000.0 ** (-torch.arange(0, r, 2) / r)
    half = torch.arange(positions).unsqueeze(-1) * frequencies
    doubled = half.repeat_interleave(2, dim=-1) if interleaved else torch.cat([half, half], dim=-1)
    return doubled.view(positions, 1, 1, r)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("shape", "r"),
    [((9, 2, 32, 128), 128), ((9, 1, 48, 128), 128), ((9, 2, 8, 128), 64), ((1, 1, 1, 2), 2), ((5, 3, 2, 7), 4)],
    ids=["8x7B", "8x22B", "partial", "one token", "odd head"],
)
def test_value_and_gradient(npu, npu_device, dtype, interleaved, shape, r):
    freqs = angles(shape[0] + 2, r, interleaved)
    freqs_on_npu = freqs.to(npu_device)
    check_on_npu(
        partial(npu.apply_rotary, freqs=freqs_on_npu, interleaved=interleaved),
        partial(reference.apply_rotary, freqs=freqs.double(), interleaved=interleaved),
        [torch.randn(shape).to(dtype)],
        npu_device,
    )


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(("cp_size", "cp_rank"), [(1, 0), (2, 0), (2, 1)])
def test_packed(npu, npu_device, dtype, cp_size, cp_rank):
    lengths = [4, 8, 4] if cp_size > 1 else [3, 1, 0, 7]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    freqs = angles(max(lengths), 128, interleaved=False)
    options = {"cp_size": cp_size, "cp_rank": cp_rank}
    check_on_npu(
        partial(npu.apply_rotary_thd, cu_seqlens=cu_seqlens.to(npu_device), freqs=freqs.to(npu_device), **options),
        partial(reference.apply_rotary_thd, cu_seqlens=cu_seqlens, freqs=freqs.double(), **options),
        [torch.randn(sum(lengths) // cp_size, 8, 128).to(dtype)],
        npu_device,
    )


def test_heads_of_a_joint_projection(npu, npu_device):
    """Queries and keys are views whose heads are not adjacent."""
    freqs = angles(6, 16, interleaved=False)
    check_on_npu(
        lambda joint: npu.apply_rotary(joint[..., 8:24], freqs.to(npu_device)),
        lambda joint: reference.apply_rotary(joint[..., 8:24], freqs.double()),
        [torch.randn(6, 2, 3, 40)],
        npu_device,
    )


def test_cosines_are_made_once(npu, npu_device, monkeypatch):
    made = []
    monkeypatch.setattr(npu, "_turn", lambda *args, make=npu._turn: made.append(args) or make(*args))
    freqs, t = angles(4, 8, interleaved=False).to(npu_device), torch.randn(4, 1, 2, 8, device=npu_device)
    first = npu.apply_rotary(t, freqs)
    assert torch.equal(npu.apply_rotary(t, freqs), first)
    assert len(made) == 1
    freqs.mul_(0.5)
    assert not torch.equal(npu.apply_rotary(t, freqs), first)
    assert len(made) == 2
    npu.apply_rotary(t[:3], freqs)
    assert len(made) == 3


def test_what_the_operator_does_not_take(npu, npu_device):
    freqs = angles(2, 8, interleaved=True).to(npu_device)
    with pytest.raises(Unsupported, match="float64; npu_rotary_mul takes"):
        npu.apply_rotary(torch.randn(2, 1, 1, 8, dtype=torch.float64, device=npu_device), freqs)
    with pytest.raises(Unsupported, match="head size 896; npu_rotary_mul takes up to 894"):
        npu.apply_rotary(torch.randn(2, 1, 1, 896, device=npu_device), freqs)
    with pytest.raises(Unsupported, match="too many batches or heads"):
        npu.apply_rotary(torch.randn(2, 40, 30, 8, device=npu_device), freqs, interleaved=True)
