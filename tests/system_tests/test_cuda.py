"""Training on a GPU: the losses are the cpu device's, from the same weights. Skipped, by name, where there is none."""

from pathlib import Path

import pytest
import torch

from tests.system_tests import parity
from tests.system_tests.report import Compared

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(torch.cuda.device_count() == 0, reason="there is no GPU: cuda was not compared with cpu"),
]


@pytest.mark.parametrize("precision", parity.PRECISIONS)
def test_parity_with_the_cpu_device(precision: str, tmp_path: Path, compared: Compared) -> None:
    weights = parity.save_weights(tmp_path, precision)
    (reference, _), (run, _) = (parity.train_on(device, "one", precision, weights) for device in ("cpu", "cuda"))
    parity.check_parity(compared, f"GPU and cpu, {precision}", ("cuda", run), ("cpu", reference), precision)
