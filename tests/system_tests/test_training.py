"""A GPU script's arguments train on every release and in every layout, and a resumed run prints the same losses."""

import pytest

from tests.system_tests import releases
from tests.system_tests.trainer import LAST, Trainer, check, check_resumed

NEWEST = releases.TRAINABLE[-1]


@pytest.fixture(scope="module", params=releases.parameters())
def trainer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp(request.param), megatron=releases.folder(request.param))


def test_one_process(trainer: Trainer, request: pytest.FixtureRequest) -> None:
    run = trainer.layout("one")
    check(run)
    assert f"Megatron-LM {request.node.callspec.params['trainer']} " in run.output
    assert "device cpu" in run.output


@pytest.mark.parametrize("trainer", releases.parameters(slow_before=NEWEST), indirect=True)
def test_pipeline_parallel(trainer: Trainer) -> None:
    check(trainer.layout("pp2"))


@pytest.mark.parametrize("trainer", releases.parameters(slow_before=NEWEST), indirect=True)
def test_tensor_and_sequence_parallel(trainer: Trainer) -> None:
    check(trainer.layout("tp2_sp", "torch"), LAST)


@pytest.mark.parametrize("trainer", releases.parameters(slow_between=True), indirect=True)
def test_expert_parallel(trainer: Trainer) -> None:
    check(trainer.layout("ep2", "torch_dist"), LAST)


@pytest.mark.parametrize("trainer", releases.parameters(slow_before=NEWEST), indirect=True)
def test_resume_torch_dist(trainer: Trainer) -> None:
    check_resumed(trainer.layout("ep2", "torch_dist"), trainer.resume("ep2", "torch_dist"))


@pytest.mark.parametrize("trainer", releases.parameters(slow_before=NEWEST), indirect=True)
def test_resume_torch(trainer: Trainer) -> None:
    check_resumed(trainer.layout("tp2_sp", "torch"), trainer.resume("tp2_sp", "torch"))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", releases.parameters(), indirect=True)
def test_eight_processes(trainer: Trainer) -> None:
    check(trainer.layout("tp2_pp2_ep2"))
