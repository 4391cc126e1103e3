"""Draws two runs: both losses, their difference, both gradient norms."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ascend_patch.runs.compare import Comparison, Pair, Quantity
from ascend_patch.runs.run import GRAD_NORM, LOSS, Run, RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#30343b", "#e4e7eb"
A, B, DIFFERENCE, BEYOND, ALLOWED = "#8fb4e8", "#c2410c", "#30343b", "#b3123f", "#dcefe2"

STYLE = {
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
"""What all pictures of this project have in common; for ``matplotlib.rc_context``."""

_FEW = 40  # points that are shown one by one


def save(figure: Figure, path: Path) -> None:
    """Write the picture, the whole file or nothing; the suffix decides the format."""
    unfinished = path.with_name(f"unfinished.{os.getpid()}.{path.name}")
    try:
        figure.savefig(unfinished, dpi=150)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def draw(comparison: Comparison, names: Sequence[str], path: Path) -> None:
    """Write the picture of a comparison.

    Args:
        names: of A and B, for the legend.

    Raises:
        RunError: matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RunError(
            f"A figure needs matplotlib ({error}). Install it (pip install matplotlib), or leave --figure out."
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    by_name = {quantity.name: quantity for quantity in comparison.quantities}
    has_norms = GRAD_NORM in by_name
    rows = [2.6, 1.4] + [1.2] * has_norms
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(rows), sharex=True, figsize=(8, 1.25 * sum(rows)), height_ratios=rows, layout="constrained"
        )
        _draw_both(axes[0], comparison.a, comparison.b, LOSS, names)
        axes[0].set_ylabel("loss (nats a token)")
        axes[0].legend(frameon=False)
        axes[0].set_title(_title(comparison), loc="left", fontsize=10, fontweight="bold")
        _draw_difference(axes[1], by_name[LOSS], names)
        if has_norms:
            _draw_both(axes[2], comparison.a, comparison.b, GRAD_NORM, names)
            axes[2].set_ylabel("gradient norm")
        _mark_first_beyond(axes, comparison)
        axes[-1].set_xlabel("iteration")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.align_ylabels()
        try:
            save(figure, path)
        except (OSError, ValueError) as error:  # a folder that is not there; a suffix that matplotlib does not know
            raise RunError(f"{path} cannot be written: {error}. Name a .png file in an existing folder.") from error
        finally:
            plt.close(figure)


def _title(comparison: Comparison) -> str:
    beyond = comparison.first_beyond
    pair = beyond.first_beyond if beyond else None
    if beyond is None or pair is None:
        return "Within tolerance"
    return f"Beyond tolerance first in iteration {pair.a.last}: {beyond.name}"


def _draw_both(axes: Axes, a: Run, b: Run, quantity: str, names: Sequence[str]) -> None:
    """A broad and pale, B thin and dark over it: where they agree, both are seen."""
    marker = "o" if max(len(a.samples[quantity]), len(b.samples[quantity])) <= _FEW else ""
    for run, name, color, width, size in ((a, names[0], A, 3.6, 5.5), (b, names[1], B, 1.2, 2.5)):
        samples = run.samples[quantity]
        axes.plot(
            [sample.last for sample in samples],
            [sample.value for sample in samples],
            color=color,
            linewidth=width,
            marker=marker,
            markersize=size,
            label=name,
        )


def _draw_difference(axes: Axes, loss: Quantity, names: Sequence[str]) -> None:
    """The relative difference of the loss, with the tolerance where that is of the same size."""
    percent = [(pair.a.last, 100 * pair.relative) for pair in loss.pairs]
    shown = [abs(value) for _, value in percent if math.isfinite(value)]
    limit = 1.25 * max(shown, default=0.0)
    allowed = _allowed(loss)
    finite = [value for value in allowed if value > 0]
    if finite and (limit == 0 or limit > 0.2 * min(finite)):
        limit = max(limit, 1.25 * min(finite))
        last = [pair.a.last for pair in loss.pairs]
        axes.fill_between(last, [-one for one in allowed], allowed, color=ALLOWED, linewidth=0)
    marker = "o" if len(percent) <= _FEW else ""
    axes.plot(*zip(*percent, strict=True), color=DIFFERENCE, linewidth=1.1, marker=marker, markersize=2.5)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_ylim(-(limit or 1), limit or 1)
    axes.set_ylabel("difference (%)")
    tolerance = f"; tolerance {loss.tolerance}" if loss.tolerance else ""
    axes.set_title(
        f"loss of {names[1]} less that of {names[0]}, in percent of the latter: "
        f"at most {100 * abs(loss.largest.relative):.2g} %{tolerance}",
        loc="left",
        fontsize=8,
    )


def _allowed(loss: Quantity) -> list[float]:
    """The tolerance at each pair, in percent of A."""
    if loss.tolerance is None:
        return [0.0] * len(loss.pairs)
    return [100 * (loss.tolerance.relative + _part(loss.tolerance.absolute, pair)) for pair in loss.pairs]


def _part(absolute: float, pair: Pair) -> float:
    return absolute / abs(pair.a.value) if pair.a.value and math.isfinite(pair.a.value) else 0.0


def _mark_first_beyond(axes: Sequence[Axes], comparison: Comparison) -> None:
    beyond = comparison.first_beyond
    pair = beyond.first_beyond if beyond else None
    if pair:
        for axis in axes:
            axis.axvline(pair.a.last, color=BEYOND, linewidth=1, linestyle=(0, (4, 2)))
