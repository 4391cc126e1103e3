"""What tests of every kind share: the NPU, real or simulated, for those marked `npu` and `simulator`."""

import pytest
import torch


@pytest.fixture(scope="session")
def npu_device() -> torch.device:
    """The first NPU. Without one the test fails: it was asked for by its marker."""
    if not hasattr(torch, "npu") or torch.npu.device_count() == 0:
        pytest.fail(
            "There is no NPU here. Run `ascend-sim run -- python -m pytest -m 'npu or simulator'`, or, on a machine "
            "with an NPU and CANN, `python -m pytest -m npu`.",
            pytrace=False,
        )
    return torch.device("npu:0")
