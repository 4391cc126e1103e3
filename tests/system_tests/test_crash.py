"""A rank is killed: torchrun starts all of them again, and the training ends as if nothing had happened, bit by bit."""

import random
import re
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from ascend_patch.features.inputs import read_metadata
from ascend_patch.run import BUNDLED
from tests.system_tests import bits, dying, example
from tests.system_tests.launcher import Run
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import EP2, tiny
from tests.system_tests.report import Compared

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("crash")]  # they share a run

KILLS = 50
LOADED = re.compile(r"successfully loaded checkpoint from .* at iteration (\d+)")
TRAINED = re.compile(r" iteration +\d+/")
SAVED = re.compile(r"successfully saved checkpoint from iteration +(\d+)")


class Killer:
    """Kills a rank of the example script once: after a line of the output, as soon as ``is_time`` says so.

    Args:
        moment: a piece of the line.
        is_time: asked every millisecond from then on.
    """

    def __init__(self, rank: int, moment: str, is_time: Callable[[], bool] = lambda: True) -> None:
        self._rank, self._moment, self._is_time = rank, moment, is_time
        self._thread: threading.Thread | None = None

    def __call__(self, line: str, agent: int) -> None:
        """Look at a line."""
        if self._thread is None and self._moment in line:
            self._thread = threading.Thread(target=self._kill, args=[example.ranks(agent)[self._rank]], daemon=True)
            self._thread.start()

    def _kill(self, process) -> None:
        while not self._is_time():
            time.sleep(0.001)
        process.kill()


@pytest.mark.parametrize("moment", ["a save", pytest.param("a step", marks=pytest.mark.slow)])
def test_a_killed_rank(undisturbed: Path, tmp_path: Path, compared: Compared, moment: str) -> None:
    """The checkpoint that it was writing is not taken for one."""
    half = tmp_path / f"iter_{2 * example.INTERVAL:07d}"
    killer = {
        "a save": Killer(1, "iteration        4/", lambda: any(file.stat().st_size for file in half.glob("*.distcp"))),
        "a step": Killer(1, "iteration        3/"),
    }[moment]
    crashed = example.train(tmp_path, watch=killer, MAX_RESTARTS=1).succeeded()
    assert LOADED.findall(crashed.output) == [str(example.INTERVAL)], crashed.tail()
    assert SAVED.findall(crashed.output) == ["2", "4", "6"], crashed.tail()
    compared.differing(
        f"A rank killed in {moment}, torchrun --max-restarts, and an undisturbed run",
        "tensors and scalars that differ at the end",
        bits.differing(tmp_path, undisturbed, example.RESUMED),
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("checkpoint_format", ["torch_dist", "torch"])
def test_random_moments(server: Server, tmp_path: Path, compared: Compared, checkpoint_format: str) -> None:
    """After each kill the next start goes on from the last checkpoint that was complete."""
    seed = random.randrange(2**32)
    print(f"random.seed({seed})")
    draw = random.Random(seed)
    last = 12

    def job(folder: Path, seconds: float, rank: int) -> Run:
        own = {"save": folder, "load": folder, "save_interval": 1, "train_iters": last, "deterministic_mode": True}
        events = {"tensorboard_dir": folder / "events", "tensorboard_log_interval": 1}
        words = tiny(**EP2 | own | events | {"ckpt_format": checkpoint_format})
        return server.run(Path(dying.__file__), [seconds, rank, BUNDLED, *words], processes=2)

    whole = tmp_path / "whole"
    began = time.monotonic()
    job(whole, 0, 0).succeeded()
    most = time.monotonic() - began
    folders = (tmp_path / f"killed{number}" for number in count())
    folder, complete, lost, kills = next(folders), 0, [], 0
    while kills < KILLS:
        run = job(folder, draw.uniform(0, most), draw.randrange(2))
        if TRAINED.search(run.output) and LOADED.findall(run.output) != [str(complete)] * bool(complete):
            lost.append(complete)
        told = max([complete, *map(int, SAVED.findall(run.output))])
        complete = latest(folder)
        if complete < told:
            lost.append(told)
        kills += run.returncode != 0
        if run.returncode == 0:  # it was faster: once more from the start
            assert not bits.differing(folder, whole, range(last, last + 1))
            folder, complete = next(folders), 0
    compared.differing(f"{KILLS} kills at random moments, {checkpoint_format}", "completed checkpoints lost", lost)
    job(folder, 0, 0).succeeded()
    assert not bits.differing(folder, whole, range(last, last + 1))


def latest(folder: Path) -> int:
    """The iteration of the last complete checkpoint, as the next start finds it; 0 if there is none."""
    tracker = folder / "latest_checkpointed_iteration.txt"
    if not tracker.exists():
        return 0
    read_metadata(lambda path: None)(str(tracker))
    return int(tracker.read_text())
