"""Training on the NPU, real or simulated: the losses are the cpu device's, from the same weights.

Some of the cases run always; `make test-all` runs every layout on every release, and `make test-checkouts` on
checkouts with their own `pretrain_gpt.py`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from tests.system_tests import parity, releases
from tests.system_tests.launcher import Iteration, train
from tests.system_tests.mixtral import CAPACITY, EP2, tiny, title
from tests.system_tests.report import Compared

pytestmark = [pytest.mark.npu, pytest.mark.usefixtures("npu_device"), pytest.mark.timeout(1200)]

OLDEST, *_, NEWEST = releases.TRAINABLE
ALWAYS = {
    (NEWEST, "one", "bf16"),
    (NEWEST, "ep2", "fp32"),
    (OLDEST, "tp2_sp", "fp32"),
}


def _cases() -> list:
    cases = [(r, layout, p) for r in releases.TRAINABLE for layout in parity.LAYOUTS for p in parity.PRECISIONS]
    return [pytest.param(*case, id="-".join(case), marks=list(_marks(case))) for case in cases]


def _marks(case: tuple[str, str, str]) -> Iterator[pytest.MarkDecorator]:
    if case not in ALWAYS:
        yield pytest.mark.slow
    if case[0] == NEWEST:
        yield pytest.mark.system


@pytest.mark.parametrize(("release", "layout", "precision"), _cases())
def test_parity_with_the_cpu_device(
    release: str, layout: str, precision: str, tmp_path: Path, compared: Compared
) -> None:
    check(layout, precision, tmp_path, compared, release, megatron=releases.folder(release))


LORA = {
    "lora_target_modules": ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "router"),
    "lr": 3e-3,
}


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        ("one", "fp32"),
        pytest.param("one", "bf16", marks=pytest.mark.slow),
        *(
            pytest.param(layout, "fp32", marks=pytest.mark.slow)
            for layout in parity.LAYOUTS
            if layout not in ("one", "etp2")  # adapters refuse the last
        ),
    ],
)
def test_adapters(layout: str, precision: str, tmp_path: Path, compared: Compared) -> None:
    """LoRA: nothing but adapters of attention, experts and routers learns."""
    check(layout, precision, tmp_path, compared, "LoRA", changes=LORA)


@pytest.mark.checkouts
@pytest.mark.parametrize("precision", parity.PRECISIONS)
@pytest.mark.parametrize("layout", parity.LAYOUTS)
def test_checkout(checkout: Path, layout: str, precision: str, tmp_path: Path, compared: Compared) -> None:
    """Unmodified checkouts, stock script, GPU flags."""
    check(layout, precision, tmp_path, compared, checkout.name, megatron=checkout, script=checkout / "pretrain_gpt.py")


@pytest.mark.slow
def test_overlap_changes_no_bit() -> None:
    """Gradients, parameters, and tokens of one micro batch beside another; experts have a capacity."""

    def iterations(**overlap: bool) -> dict[int, Iteration]:
        flags = tiny(**EP2 | CAPACITY | overlap)
        return train(flags, processes=2, variables={"ASCEND_PATCH_DEVICE": "npu"}).succeeded().iterations

    plain = iterations(overlap_grad_reduce=False, overlap_param_gather=False)
    assert len(plain) == 3
    assert iterations(overlap_moe_expert_parallel_comm=True) == plain


def check(
    layout: str,
    precision: str,
    folder: Path,
    compared: Compared,
    release: str,
    changes: Mapping = MappingProxyType({}),
    **start: object,
) -> None:
    processes, _ = parity.LAYOUTS[layout]
    if processes > torch.npu.device_count():
        pytest.skip(f"{layout} needs {processes} NPUs, there are {torch.npu.device_count()}")
    weights = parity.save_weights(folder, precision, **start)
    reference, _ = parity.train_on("cpu", layout, precision, weights, changes, **start)
    run, report = parity.train_on("npu", layout, precision, weights, changes, **start)
    what = f"NPU and cpu, {title(parity.LAYOUTS[layout][1])}, {precision}, {release}"
    parity.check_parity(compared, what, ("npu", run), ("cpu", reference), precision)
    # Where tokens are dropped, not all have equally many experts, and the NPU's operator takes no others.
    parity.check_npu_ran(report, frozenset({"permute"} if layout == "ep2_drop" else ()))
