"""Stock `pretrain_gpt.py` of unmodified checkouts. `make test-checkouts MEGATRON_PATHS="…"` runs these."""

import sys
from pathlib import Path

import pytest

from tests.system_tests.launcher import environment, run, single_process
from tests.system_tests.mixtral import tiny
from tests.system_tests.trainer import LAST, Trainer, check, check_resumed

pytestmark = pytest.mark.checkouts


@pytest.fixture(scope="module")
def trainer(checkout: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    if checkout is None or not (checkout / "pretrain_gpt.py").is_file():
        pytest.fail(f"{checkout} is no Megatron-LM checkout; name some with --megatron-path", pytrace=False)
    folder = tmp_path_factory.mktemp("checkout")
    return Trainer(folder, megatron=checkout, script=checkout / "pretrain_gpt.py")


@pytest.mark.parametrize("layout", ["one", "pp2", "tp2_pp2_ep2"])
def test_layouts(trainer: Trainer, layout: str) -> None:
    check(trainer.layout(layout))


@pytest.mark.parametrize("checkpoint_format", ["torch_dist", "torch"])
@pytest.mark.parametrize("layout", ["tp2_sp", "ep2"])
def test_layouts_and_resume(trainer: Trainer, layout: str, checkpoint_format: str) -> None:
    whole = trainer.layout(layout, checkpoint_format)
    check(whole, LAST)
    check_resumed(whole, trainer.resume(layout, checkpoint_format))


def test_explicit_door(trainer: Trainer, checkout: Path) -> None:
    """`python -m ascend_patch.run` prints what `ASCEND_PATCH=1` prints."""
    command = [sys.executable, "-m", "ascend_patch.run", str(checkout / "pretrain_gpt.py"), *tiny()]
    ended = run(command, environment(checkout, **single_process()), timeout=240).succeeded()
    assert ended.iterations == trainer.layout("one").iterations
