"""Training on the NPU, real or simulated: the losses are the cpu device's, from the same weights.

Some of the cases run always; `make test-all` runs every layout on every release, and `make test-checkouts` on
checkouts with their own `pretrain_gpt.py`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.system_tests import parity, releases

pytestmark = [pytest.mark.npu, pytest.mark.usefixtures("npu_device"), pytest.mark.timeout(1200)]

OLDEST, *_, NEWEST = releases.TRAINABLE
ALWAYS = {
    (NEWEST, "one", "fp32"),
    (NEWEST, "one", "bf16"),
    (NEWEST, "ep2", "fp32"),
    (OLDEST, "tp2_sp", "fp32"),
}


def _cases() -> list:
    cases = [(r, layout, p) for r in releases.TRAINABLE for layout in parity.LAYOUTS for p in parity.PRECISIONS]
    return [
        pytest.param(*case, id="-".join(case), marks=[] if case in ALWAYS else [pytest.mark.slow]) for case in cases
    ]


@pytest.mark.parametrize(("release", "layout", "precision"), _cases())
def test_parity_with_the_cpu_device(
    release: str, layout: str, precision: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    check(layout, precision, tmp_path, record_property, megatron=releases.folder(release))


@pytest.mark.checkouts
@pytest.mark.parametrize("precision", parity.PRECISIONS)
@pytest.mark.parametrize("layout", parity.LAYOUTS)
def test_checkout(
    checkout: Path, layout: str, precision: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Unmodified checkouts, stock script, GPU flags."""
    check(layout, precision, tmp_path, record_property, megatron=checkout, script=checkout / "pretrain_gpt.py")


def check(layout: str, precision: str, folder: Path, record: Callable[[str, object], None], **start: object) -> None:
    processes, _ = parity.LAYOUTS[layout]
    if processes > torch.npu.device_count():
        pytest.skip(f"{layout} needs {processes} NPUs, there are {torch.npu.device_count()}")
    weights = parity.save_weights(folder, precision, **start)
    reference, _ = parity.train_on("cpu", layout, precision, weights, **start)
    run, report = parity.train_on("npu", layout, precision, weights, **start)
    for device, trained in (("cpu", reference), ("npu", run)):
        record(f"losses on {device}", " ".join(str(i.loss) for i in trained.iterations.values()))
    record("largest relative difference", f"{max(parity.difference(run, reference)):.1e}")
    parity.check_parity(run, reference, precision)
    parity.check_npu_ran(report)
