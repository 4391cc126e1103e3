"""Training the tiny Mixtral in each layout, and what a run must look like."""

from decimal import Decimal
from functools import cache
from pathlib import Path

from ascend_patch.runs.compare import Tolerance, compare
from ascend_patch.runs.megatron_log import History
from ascend_patch.runs.read import of_log
from tests.system_tests.launcher import Run, train
from tests.system_tests.mixtral import EP2, ONE, PP2, TP2_PP2_EP2, TP2_SP, tiny

SAVED, LAST = 2, 5
"""A run of five iterations saves after the second, and is resumed there: the third and the fifth can be compared."""

UNTRAINED = Decimal("6.908")  # ln(1000): every token of the vocabulary as likely as any other
LAYOUTS = {"one": (1, ONE), "tp2_sp": (2, TP2_SP), "ep2": (2, EP2), "pp2": (2, PP2), "tp2_pp2_ep2": (8, TP2_PP2_EP2)}


class Trainer:
    """One Megatron, trained in each layout once, however many tests look at it.

    Args:
        folder: for checkpoints.
        start: passed to :func:`launcher.train`: which Megatron, which script.
    """

    def __init__(self, folder: Path, **start: object) -> None:
        self.folder = folder
        self.start = start
        self.layout = cache(self._layout)

    def train(self, layout: str, **changes: object) -> Run:
        """Train with the flags of ``layout`` and the ``changes``."""
        processes, flags = LAYOUTS[layout]
        return train(tiny(**{**flags, **changes}), processes=processes, **self.start).succeeded()

    def resume(self, layout: str, checkpoint_format: str) -> Run:
        """From the checkpoint that :meth:`layout` left after iteration ``SAVED``."""
        saved = self.folder / layout / checkpoint_format
        # Not with --ckpt-step: in format torch, upstream then takes the optimizer's state of the latest iteration.
        (saved / "latest_checkpointed_iteration.txt").write_text(str(SAVED))
        return self.train(layout, load=saved, ckpt_format=checkpoint_format, train_iters=LAST)

    def _layout(self, layout: str, checkpoint_format: str | None = None) -> Run:
        if checkpoint_format is None:
            return self.train(layout)
        save = self.folder / layout / checkpoint_format
        return self.train(layout, save=save, save_interval=SAVED, ckpt_format=checkpoint_format, train_iters=LAST)


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
    # Between the two, upstream prints a mean of two iterations, which `ascend-patch compare` takes apart.
    logs = [of_log(Path("log"), History.of(run.output.splitlines())) for run in (whole, resumed)]
    comparison = compare(*logs, {"": Tolerance()})
    assert comparison.first_beyond is None
    assert comparison.quantities[0].compared == LAST - SAVED
