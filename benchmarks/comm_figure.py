"""Draws in which order a rank gave computation and collectives to its device: a panel a side, a lane a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ascend_patch.runs.figure import STYLE, save
from ascend_sim.timeline import Event, spans

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYER, REST, WAITING = "#9fb6d3", "#d5dbe3", "#b3123f"
KINDS = {
    "all_to_all": "#c2410c",
    "all_gather": "#3566b8",
    "reduce_scatter": "#3b8c66",
    "all_reduce": "#8a5fb0",
    "isend_irecv": "#c58b1b",
}
"""Colours, by what the name of a collective has in it."""
OTHER = "#6b7280"
NARROWEST = 1 / 250
"""The least width of a collective, as a part of the panel: one launch in many would not be seen."""


class Bar(NamedTuple):
    """Something in a lane, from ``left`` and of ``width``, in launches."""

    lane: str
    left: float
    width: float
    color: str


def draw(title: str, sides: Mapping[str, Sequence[Event]], path: Path) -> None:
    """Write the picture.

    Args:
        sides: for each panel, from the top, its name and the record of a step.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    panels = {name: bars(events) for name, events in sides.items()}
    heights = [1.2 + len({bar.lane for bar in found}) for found in panels.values()]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(panels), figsize=(14, 1.4 + 0.42 * sum(heights)), height_ratios=heights, layout="constrained"
        )
        axes = [axes] if len(panels) == 1 else axes
        for axis, (name, found) in zip(axes, panels.items(), strict=True):
            _panel(axis, name, found)
        shown = {bar.color for found in panels.values() for bar in found}
        colors = {
            "computation in layers": LAYER,
            "other computation": REST,
            "waits: the collective below cannot hide": WAITING,
        }
        colors |= {**KINDS, "other collectives": OTHER}
        legend = [Patch(color=color, label=label) for label, color in colors.items() if color in shown]
        figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False, fontsize=8)
        figure.suptitle(title, fontsize=11, fontweight="bold")
        save(figure, path)
        plt.close(figure)


def bars(events: Sequence[Event]) -> list[Bar]:
    """What the picture of a record shows, computation first.

    A launch is one unit wide. A collective begins where it was launched and ends with the last launch that may run
    beside it; one without any takes room of its own, in which computation waits.
    """
    launches = [position for position, event in enumerate(events) if event.kind == "launch"]
    narrowest = max(1.0, len(launches) * NARROWEST)
    by_start = {span.start: span for span in spans(events)}
    streams = list(dict.fromkeys(events[position].stream for position in launches))
    lanes = {stream: "computation" + (f", stream {i}" if i else "") for i, stream in enumerate(streams)}
    left: dict[int, float] = {}
    now = 0.0
    found: list[Bar] = []
    for position, event in enumerate(events):
        left[position] = now
        if event.kind == "launch":
            found.append(Bar(lanes[event.stream], now, 1, LAYER if event.scope else REST))
            now += 1
        elif position in by_start and not by_start[position].beside:
            found.append(Bar(lanes.get(event.stream, "computation"), now, narrowest, WAITING))
            now += narrowest
    for span in by_start.values():
        width = left[span.beside[-1]] + 1 - left[span.start] if span.beside else narrowest
        found.append(Bar(span.event.group, left[span.start], max(width, narrowest), _color(span.event.name)))
    return found


def _color(name: str) -> str:
    return next((color for kind, color in KINDS.items() if kind in name), OTHER)


def _panel(axis: Axes, name: str, found: Sequence[Bar]) -> None:
    lanes = list(dict.fromkeys(bar.lane for bar in found))
    for row, lane in enumerate(lanes):
        here = [bar for bar in found if bar.lane == lane]
        axis.broken_barh(
            [(bar.left, bar.width) for bar in here],
            (row - 0.38, 0.76),
            facecolors=[bar.color for bar in here],
            edgecolor=None if here[0].color in (LAYER, REST, WAITING) else "white",
            linewidth=0.5,
        )
    axis.set_yticks(range(len(lanes)), lanes)
    axis.set_ylim(len(lanes) - 0.5, -0.5)
    axis.set_xlim(0, max((bar.left + bar.width for bar in found), default=1))
    axis.grid(axis="y", visible=False)
    axis.set_title(name, loc="left", fontsize=10, fontweight="bold")
    axis.set_xlabel("launches of computation and waits, in their order (not time)")
