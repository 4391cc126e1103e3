"""Results as text for people and as JSON for programs."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.activation import ActivationCost
from benchmarks.statistics import Sample
from benchmarks.training import Comparison

TARGETS = {"b/a": 1.5, "b/c": 1.0}
"""What each ratio has to reach."""
ACTIVATION_TARGET = 0.3
"""Seconds that activation may add to the import."""


def training_table(comparison: Comparison) -> str:
    """The table of one dtype, with the ratios and whether they are what they have to be."""
    lines = [f"{comparison.dtype:<42}{'tokens/s':>10}{'noise':>8}{'CPU s/step':>12}{'of d':>8}{'loss':>9}"]
    for row in comparison.rows:
        speed = row.tokens_per_second
        lines.append(
            f"  {row.key}  {row.title:<37}{speed.median:>10.0f}{speed.noise:>8.0%}{row.cpu_seconds.median:>12.2f}"
            f"{row.gemm_fraction.median:>8.1%}{row.loss:>9.3f}"
        )
    limit = comparison.flops_per_second
    lines.append(f"  d  {f'matrix product: {limit.median / 1e9:.0f} GFLOP/s':<47}{limit.noise:>8.0%}")
    for name, ratio in comparison.ratios.items():
        target = TARGETS[name]
        verdict = "met" if ratio.median >= target else "MISSED"
        lines.append(f"  {name} = {_with_quartiles(ratio)}, at least {target}: {verdict}")
    return "\n".join(lines)


def activation_line(cost: ActivationCost) -> str:
    """What activation adds to the import, in one line."""
    verdict = "met" if cost.difference.median < ACTIVATION_TARGET else "MISSED"
    return (
        f"import megatron.training: {cost.plain.median:.2f} s plain, {cost.activated.median:.2f} s activated; "
        f"activation adds {_with_quartiles(cost.difference)} s, under {ACTIVATION_TARGET}: {verdict}"
    )


def as_dict(
    machine: Mapping[str, Any], comparisons: Sequence[Comparison], cost: ActivationCost | None
) -> dict[str, Any]:
    """Everything measured, for :func:`write_json`."""
    return {
        "schema": 1,
        "machine": dict(machine),
        "training": [asdict(comparison) for comparison in comparisons],
        "activation": asdict(cost) if cost else None,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content``; the file is there whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def _with_quartiles(sample: Sample) -> str:
    return f"{sample.median:.2f} ({sample.low:.2f} to {sample.high:.2f} over {sample.count} rounds)"
