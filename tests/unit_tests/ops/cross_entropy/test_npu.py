"""Cross entropy on the NPU against float64; with the vocabulary split as well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ascend_patch.ops.cross_entropy import reference
from ascend_patch.ops.registry import Unsupported
from tests.unit_tests.ops.checks import TOLERANCES, relative_error, results_and_gradients
from tests.unit_tests.ops.npu_checks import check_on_npu

pytestmark = pytest.mark.npu

WORKER = Path(__file__).with_name("vocab_parallel_worker.py")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 2, 32000), (7, 1, 13), (1, 1, 1)])
def test_value_and_gradient(npu, npu_device, dtype, shape):
    logits, target = (4 * torch.randn(shape)).to(dtype), torch.randint(shape[-1], shape[:-1])
    check_on_npu(npu.cross_entropy, reference.cross_entropy, [logits, target], npu_device)


def test_the_loss_is_float32(npu, npu_device):
    """That of bfloat16 logits too, and exact to float32."""
    logits, target = torch.randn(6, 50).bfloat16(), torch.randint(50, (6,))
    loss = npu.cross_entropy(logits.to(npu_device), target.to(npu_device))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.cpu(), reference.cross_entropy(logits, target))


def test_masked_tokens(npu, npu_device):
    """A target outside of the vocabulary reaches nothing when its loss is masked."""
    logits, target = torch.randn(4, 9, device=npu_device, requires_grad=True), torch.tensor([3, -100, 9, 0])
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0], device=npu_device)
    (npu.cross_entropy(logits, target.to(npu_device)) * mask).sum().backward()
    expected = torch.softmax(logits.detach().cpu(), -1) - torch.nn.functional.one_hot(target.clamp(0, 8), 9)
    torch.testing.assert_close(logits.grad.cpu(), expected * mask.cpu().unsqueeze(-1))


def test_non_contiguous_logits(npu, npu_device):
    target = torch.randint(11, (3, 5))
    check_on_npu(
        lambda logits, target: npu.cross_entropy(logits.transpose(0, 1), target),
        lambda logits, target: reference.cross_entropy(logits.transpose(0, 1), target),
        [torch.randn(5, 3, 11), target],
        npu_device,
    )


def test_what_the_operator_does_not_take(npu, npu_device):
    logits, target = torch.randn(3, 5, device=npu_device), torch.zeros(3, dtype=torch.int64, device=npu_device)
    with pytest.raises(Unsupported, match="float64; npu_cross_entropy_loss takes"):
        npu.cross_entropy(logits.double(), target)
    with pytest.raises(Unsupported, match="label smoothing"):
        npu.cross_entropy(logits, target, label_smoothing=0.1)
    with pytest.raises(Unsupported, match="no token or more than 200000"):
        npu.cross_entropy(logits[:0], target[:0])


def test_vocabulary_split_between_two_ranks(npu_device, tmp_path):
    """One rank's part dominates the other's in the second case; bfloat16 in the third."""
    cases = []
    for dtype, boost in [(torch.float32, 0.0), (torch.float32, 20.0), (torch.bfloat16, 0.0)]:
        logits = (3 * torch.randn(6, 3, 24)).to(dtype)
        logits[..., :12] += boost
        cases.append((logits, torch.randint(24, (6, 3)), torch.rand(6, 3)))
    torch.save(cases, tmp_path / "inputs.pt")
    environment = {**os.environ, "ASCEND_SIM_DEVICES": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen([sys.executable, WORKER, str(rank), "2", tmp_path], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for rank in ranks:
        errors = rank.communicate(timeout=120)[1].decode()
        assert rank.returncode == 0, errors
    parts = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for (logits, target, grad_loss), *found in zip(cases, *parts, strict=True):
        expected, (gradient,) = results_and_gradients(reference.cross_entropy, [logits.double(), target], grad_loss)
        for loss, _ in found:
            assert loss.dtype == torch.float32
            assert relative_error(loss, expected) <= 1e-5
        assert relative_error(torch.cat([part for _, part in found], dim=-1), gradient) <= TOLERANCES[logits.dtype]
