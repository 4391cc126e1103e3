"""The NPU path trains on the simulated device: the losses are the cpu device's, from the same weights.

Five of the cases run always; `make test-all` runs every layout on every release, and `make test-checkouts` on
checkouts with their own `pretrain_gpt.py`.
"""

from pathlib import Path

import pytest

from tests.system_tests import parity, releases

NEWEST = releases.TRAINABLE[-1]
ALWAYS = {
    (NEWEST, "one", "fp32"),
    (NEWEST, "one", "bf16"),
    (NEWEST, "ep2", "fp32"),
    (releases.TRAINABLE[0], "tp2_sp", "fp32"),
    (releases.TRAINABLE[1], "pp2", "fp32"),
}

CASES = [
    pytest.param(
        release,
        layout,
        precision,
        id=f"{release}-{layout}-{precision}",
        marks=[] if (release, layout, precision) in ALWAYS else [pytest.mark.slow],
    )
    for release in releases.TRAINABLE
    for layout in parity.LAYOUTS
    for precision in parity.PRECISIONS
]


@pytest.mark.parametrize(("release", "layout", "precision"), CASES)
def test_parity_with_the_cpu_device(release: str, layout: str, precision: str, tmp_path: Path) -> None:
    start = {"megatron": releases.folder(release)}
    weights = parity.save_weights(tmp_path, precision, **start)
    reference, _ = parity.train_on("cpu", layout, precision, weights, **start)
    run, report = parity.train_on("npu", layout, precision, weights, **start)
    parity.check_parity(run, reference, precision)
    parity.check_npu_ran(report)


@pytest.mark.checkouts
@pytest.mark.parametrize("precision", parity.PRECISIONS)
@pytest.mark.parametrize("layout", parity.LAYOUTS)
def test_checkout(checkout: Path, layout: str, precision: str, tmp_path: Path) -> None:
    """Unmodified checkouts, stock script, GPU flags."""
    start = {"megatron": checkout, "script": checkout / "pretrain_gpt.py"}
    weights = parity.save_weights(tmp_path, precision, **start)
    reference, _ = parity.train_on("cpu", layout, precision, weights, **start)
    run, report = parity.train_on("npu", layout, precision, weights, **start)
    parity.check_parity(run, reference, precision)
    parity.check_npu_ran(report)
