"""A GPU script's arguments train on every release and in every layout, and a resumed run prints the same losses."""

from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

import pytest

from tests.system_tests import releases
from tests.system_tests.launcher import Run, train
from tests.system_tests.mixtral import EP2, ONE, PP2, TP2_PP2_EP2, TP2_SP, tiny

SAVED, LAST = 2, 5
"""A run of five iterations saves after the second, and is resumed there: the third and the fifth can be compared."""

UNTRAINED = Decimal("6.908")  # ln(1000): every token of the vocabulary as likely as any other
LAYOUTS = {"one": (1, ONE), "tp2_sp": (2, TP2_SP), "ep2": (2, EP2), "pp2": (2, PP2)}


@dataclass(frozen=True)
class Trainer:
    """Runs one release, each layout once, however many tests look at it."""

    release: str
    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", cache(self._layout))

    def train(self, layout: str, **changes: object) -> Run:
        processes, flags = LAYOUTS[layout]
        return train(
            tiny(**{**flags, **changes}), processes=processes, megatron=releases.folder(self.release)
        ).succeeded()

    def saved(self, checkpoint_format: str) -> dict:
        return {"ckpt_format": checkpoint_format, "train_iters": LAST}

    def resume(self, layout: str, checkpoint_format: str) -> Run:
        """From the checkpoint that :meth:`layout` left after iteration ``SAVED``."""
        # Not with --ckpt-step: in format torch, upstream then takes the optimizer's state of the latest iteration.
        (self.folder / layout / "latest_checkpointed_iteration.txt").write_text(str(SAVED))
        return self.train(layout, load=self.folder / layout, **self.saved(checkpoint_format))

    def _layout(self, layout: str, checkpoint_format: str | None = None) -> Run:
        if checkpoint_format is None:
            return self.train(layout)
        return self.train(layout, save=self.folder / layout, save_interval=SAVED, **self.saved(checkpoint_format))


@pytest.fixture(scope="module", params=[pytest.param(r, marks=pytest.mark.xdist_group(r)) for r in releases.TRAINABLE])
def trainer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(request.param, tmp_path_factory.mktemp(request.param))


def check(run: Run, iterations: int = 3) -> None:
    """The run logged every iteration, began untrained, and learned."""
    assert sorted(run.iterations) == list(range(1, iterations + 1)), run.tail()
    first, last = run.losses[1], run.losses[iterations]
    assert abs(first - UNTRAINED) < Decimal("0.2")
    assert last < first - Decimal("0.2")
    assert all(entry.grad_norm > 0 for entry in run.iterations.values())
    assert all(Decimal("0.9") < entry.aux_loss < Decimal("1.5") for entry in run.iterations.values())


def check_resumed(whole: Run, resumed: Run) -> None:
    """Printed digit by printed digit: loss, aux loss and gradient norm."""
    assert min(resumed.iterations) == SAVED + 1, resumed.tail()
    assert resumed.iterations[SAVED + 1] == whole.iterations[SAVED + 1]
    assert resumed.iterations[LAST] == whole.iterations[LAST]


def test_one_process(trainer: Trainer) -> None:
    run = trainer.layout("one")
    check(run)
    assert f"Megatron-LM {trainer.release} " in run.output
    assert "device cpu" in run.output


def test_pipeline_parallel(trainer: Trainer) -> None:
    check(trainer.layout("pp2"))


def test_tensor_and_sequence_parallel(trainer: Trainer) -> None:
    check(trainer.layout("tp2_sp", "torch"), LAST)


def test_expert_parallel(trainer: Trainer) -> None:
    check(trainer.layout("ep2", "torch_dist"), LAST)


def test_resume_torch_dist(trainer: Trainer) -> None:
    check_resumed(trainer.layout("ep2", "torch_dist"), trainer.resume("ep2", "torch_dist"))


def test_resume_torch(trainer: Trainer) -> None:
    check_resumed(trainer.layout("tp2_sp", "torch"), trainer.resume("tp2_sp", "torch"))


def eight_processes(release: str) -> None:
    check(train(tiny(**TP2_PP2_EP2), processes=8, megatron=releases.folder(release), timeout=290).succeeded())


def test_eight_processes() -> None:
    eight_processes(releases.TRAINABLE[-1])


@pytest.mark.slow
@pytest.mark.parametrize("release", releases.TRAINABLE[:-1])
def test_eight_processes_on_older_releases(release: str) -> None:
    eight_processes(release)
