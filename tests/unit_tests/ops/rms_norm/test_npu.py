"""RMSNorm on the NPU against float64."""

from functools import partial

import pytest
import torch

from ascend_patch.ops.registry import Unsupported
from ascend_patch.ops.rms_norm import reference
from tests.unit_tests.ops.npu_checks import check_on_npu

pytestmark = pytest.mark.npu

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
expected = partial(reference.rms_norm, eps=1e-5)


@pytest.fixture
def norm(npu):
    return partial(npu.rms_norm, eps=1e-5)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("weight_dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("shape", [(5, 2, 4096), (3, 1, 6144), (9, 7), (1, 3), (0, 4), (6,)])
def test_value_and_gradients(norm, npu_device, dtype, weight_dtype, shape):
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(weight_dtype)
    check_on_npu(norm, expected, [x, weight], npu_device)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_non_contiguous_input(norm, npu_device, dtype):
    x, weight = torch.randn(8, 3, 5).to(dtype), torch.randn(8).to(dtype)
    check_on_npu(
        lambda x, weight: norm(x.transpose(0, 2), weight),
        lambda x, weight: expected(x.transpose(0, 2), weight),
        [x, weight],
        npu_device,
    )


def test_a_row_of_zeros(npu, npu_device):
    """eps alone keeps the value and the gradient finite."""
    x = torch.zeros(1, 4, device=npu_device, requires_grad=True)
    npu.rms_norm(x, torch.ones(4, device=npu_device), 1e-4).sum().backward()
    torch.testing.assert_close(x.grad.cpu(), torch.full((1, 4), 100.0))


def test_what_the_operator_does_not_take(norm, npu_device):
    with pytest.raises(Unsupported, match="float64; npu_rms_norm takes float32, float16, bfloat16"):
        norm(torch.randn(2, 4, dtype=torch.float64, device=npu_device), torch.ones(4, device=npu_device))
    with pytest.raises(Unsupported, match="a tensor on cpu"):
        norm(torch.randn(2, 4), torch.ones(4))
