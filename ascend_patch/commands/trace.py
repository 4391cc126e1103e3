"""`ascend-patch trace FOLDER`: what is in a trace. `ascend-patch trace diff A B`: where two traces begin to differ.

A run with ASCEND_PATCH_TRACE=FOLDER[@STEPS] writes a trace. `diff` names the first module, direction, step and rank in
order of execution: all forward passes of a step, then the gradients of outputs, then those of parameters. With equal
layouts and devices it compares hashes, unless a tolerance is given; otherwise means, norms and largest values.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ascend_patch.commands.output import print_json, print_table
from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.trace.compare import TOLERANCE, Difference, StepComparison, compare
from ascend_patch.trace.store import DIRECTIONS, GRADIENT, Digest, RankTrace, Record, Trace

HELP = "what every module computed, and where two runs begin to differ"
SHOWN = 10
_NUMBERS = ("count", "mean", "norm", "largest")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.usage = "%(prog)s [options] FOLDER | diff A B"
    parser.add_argument("words", nargs="+", metavar="FOLDER | diff A B", help="one trace, or two to compare")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="RELATIVE",
        help=f"diff: how far tensors may differ; default: not at all, {TOLERANCE:g} across layouts and devices",
    )
    parser.add_argument("--name", metavar="PATTERN", help="print the digests of matching modules and parameters")
    parser.add_argument("--step", type=int, metavar="N", help="only this step")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print it; 1 if two traces differ."""
    words = arguments.words
    if words[0] == "diff" and len(words) == 3:
        return _diff(Trace(Path(words[1])), Trace(Path(words[2])), arguments)
    if words[0] == "diff" or len(words) > 1:
        raise AscendPatchError(
            f"`ascend-patch trace` takes one folder, or the word diff and two; it got {' '.join(words)}. A folder of "
            "the name diff is ./diff."
        )
    if arguments.tolerance is not None:
        raise AscendPatchError("--tolerance is for `ascend-patch trace diff A B`. Leave it out, or name two folders.")
    return _show(Trace(Path(words[0])), arguments)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on, such as 1e-4")
    return value


def _steps(traces: Sequence[Trace], wanted: int | None) -> list[int]:
    """The steps that all traces hold, or the one that is wanted."""
    common = set.intersection(*(set(trace.steps) for trace in traces))
    steps = sorted(common if wanted is None else common & {wanted})
    if not steps:
        found = "; ".join(f"{trace.folder}: {', '.join(map(str, trace.steps))}" for trace in traces)
        what = "step in common" if wanted is None else f"step {wanted}"
        raise AscendPatchError(f"There is no {what}. Steps recorded by every rank: {found}.")
    return steps


def _show(trace: Trace, arguments: argparse.Namespace) -> int:
    steps = _steps([trace], arguments.step)
    pattern = arguments.name
    if pattern is not None:
        found = [
            (rank, record)
            for step in steps
            for rank in trace.ranks(step)
            for record in rank.records
            if fnmatchcase(record.name, pattern)
        ]
        if not found:
            raise AscendPatchError(f"--name {pattern} matches nothing. Use * and ?, such as '*.router'.")
        _print_records(found, arguments.json)
        return 0
    rows = [_summary(trace, step) for step in steps]
    if arguments.json:
        print_json({"folder": str(trace.folder), "steps": rows, "unfinished": list(trace.unfinished)})
        return 0
    print_table(
        ["step", "ranks", "layout", "device", "modules", "parameters", "digests", "on disk"],
        [[str(value) for value in (*list(row.values())[:-2], f"{row['bytes'] / 1024:.0f} KiB")] for row in rows],
    )
    for name, value in rows[0]["run"].items():
        print(f"{name}: {value}")
    _print_unfinished("", trace)
    return 0


def _summary(trace: Trace, step: int) -> dict[str, Any]:
    ranks = trace.ranks(step)
    names = {(record.direction == GRADIENT, record.name) for rank in ranks for record in rank.records}
    return {
        "step": step,
        "ranks": len(ranks),
        "layout": str(ranks[0].layout),
        "device": ranks[0].device,
        "modules": sum(not parameter for parameter, _ in names),
        "parameters": sum(parameter for parameter, _ in names),
        "digests": sum(len(rank.records) for rank in ranks),
        "bytes": trace.size(step),
        "run": ranks[0].run,
    }


def _print_records(found: list[tuple[RankTrace, Record]], as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {"step": rank.step, "rank": rank.rank, **record._asdict(), "digest": _digest_data(record.digest)}
                for rank, record in found
            ]
        )
        return
    print_table(
        ["step", "rank", "direction", "name", "output", "call", "micro-batch", *_NUMBERS, "hash"],
        [
            [
                *map(str, (rank.step, rank.rank, *record[:5])),
                *map(_figure, _numbers(record.digest)),
                record.digest.hash,
            ]
            for rank, record in found
        ],
    )


def _print_unfinished(letter: str, trace: Trace) -> None:
    if trace.unfinished:
        steps = ", ".join(map(str, trace.unfinished))
        print(f"- {letter}not recorded by every rank, and left out: step {steps}.")


def _diff(a: Trace, b: Trace, arguments: argparse.Namespace) -> int:
    results, layouts = [], []
    for step in _steps([a, b], arguments.step):
        ranks = a.ranks(step), b.ranks(step)
        layouts = [f"{len(one)} rank{'s' * (len(one) > 1)} on {one[0].device}, {one[0].layout}" for one in ranks]
        results.append(compare(*ranks, arguments.tolerance))
    first = next((result.differences[0] for result in results if result.differences), None)
    if arguments.json:
        print_json(_data(a, b, layouts, results, first))
        return int(first is not None)
    for letter, trace, layout in zip("AB", (a, b), layouts, strict=True):
        print(f"{letter}: {trace.folder}: {layout}")
    print()
    print_table(
        ["step", "compared", "by", *DIRECTIONS, "largest difference"],
        [
            [str(result.step), str(result.compared), _by(result), *map(str, _counts(result)), f"{result.largest:.2g}"]
            for result in results
        ],
    )
    if first is not None:
        _print_first(next(result for result in results if result.differences))
    _print_only("A", results[0].only_a)
    _print_only("B", results[0].only_b)
    _print_unfinished("A: ", a)
    _print_unfinished("B: ", b)
    print(f"\n{verdict(first, results)}")
    return int(first is not None)


def _by(result: StepComparison) -> str:
    return "hash" if result.tolerance is None else f"digest, {result.tolerance:g}"


def _counts(result: StepComparison) -> list[int]:
    """How many tensors differ, by direction."""
    directions = [difference.place.direction for difference in result.differences]
    return [directions.count(direction) for direction in DIRECTIONS]


def _print_first(result: StepComparison) -> None:
    shown = result.differences[:SHOWN]
    print(f"\nThe first {len(shown)} of {len(result.differences)} in step {result.step}:\n")
    print_table(
        ["direction", "name", "samples", "ranks", *_NUMBERS, "difference"],
        [
            [
                one.place.direction,
                _name(one),
                _samples(one),
                _ranks(one),
                *(_both(one, quantity) for quantity in _NUMBERS),
                _amounts(one),
            ]
            for one in shown
        ],
    )


def _print_only(letter: str, names: tuple[str, ...]) -> None:
    if names:
        some = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
        print(f"\n- Only in {letter}, and not compared: {some} ({len(names)}).")


def verdict(first: Difference | None, results: Sequence[StepComparison]) -> str:
    """One sentence: no difference, or the first."""
    if first is None:
        steps = ", ".join(str(result.step) for result in results)
        return f"No difference in {sum(result.compared for result in results)} tensors of step {steps}."
    ranks_a, ranks_b = (", ".join(map(str, ranks)) for ranks in (first.ranks_a, first.ranks_b))
    where = f"rank {ranks_a}" if ranks_a == ranks_b else f"rank {ranks_a} of A, rank {ranks_b} of B"
    what = {"forward": "output", "backward": "gradient of the output", "gradient": "gradient"}[first.place.direction]
    samples = f", sample{'s' * (first.place.samples > 1)} {_samples(first)} of the batch" if first.place.samples else ""
    return f"First difference: step {first.step}, {what} of {_name(first)}, {where}{samples} ({_amounts(first)})."


def _name(difference: Difference) -> str:
    place = difference.place
    output = f" output {place.output}" if place.output else ""
    call = f" call {place.call}" if place.call else ""
    return place.name + output + call


def _samples(difference: Difference) -> str:
    first, count = difference.place.first_sample, difference.place.samples
    return f"{first}-{first + count - 1}" if count > 1 else str(first) if count else ""


def _ranks(difference: Difference) -> str:
    a, b = (",".join(map(str, ranks)) for ranks in (difference.ranks_a, difference.ranks_b))
    return a if a == b else f"{a} / {b}"


def _both(difference: Difference, quantity: str) -> str:
    """Of A and of B; one number if they are equal, none if they cannot be compared."""
    if quantity not in difference.amounts:
        return "-"
    a, b = (_figure(getattr(digest, quantity)) for digest in (difference.a, difference.b))
    return a if a == b else f"{a} {b}"


def _numbers(digest: Digest) -> list[float]:
    """Those that :data:`_NUMBERS` names."""
    return [getattr(digest, name) for name in _NUMBERS]


def _amounts(difference: Difference) -> str:
    """The quantity that differs most."""
    name, amount = max(difference.amounts.items(), key=lambda item: item[1])
    return f"{name} {amount:.2g}" if amount else "hash"


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _data(
    a: Trace, b: Trace, layouts: Sequence[str], results: Sequence[StepComparison], first: Difference | None
) -> dict[str, Any]:
    return {
        **{
            letter: {"folder": str(trace.folder), "layout": layout, "unfinished": list(trace.unfinished)}
            for letter, trace, layout in zip("ab", (a, b), layouts, strict=True)
        },
        "steps": [
            {
                "step": result.step,
                "compared": result.compared,
                "tolerance": result.tolerance,
                "differences": dict(zip(DIRECTIONS, _counts(result), strict=True)),
                "largest": _number(result.largest),
                "only_a": list(result.only_a),
                "only_b": list(result.only_b),
            }
            for result in results
        ],
        "first": _difference_data(first) if first else None,
        "same": first is None,
    }


def _difference_data(difference: Difference) -> dict[str, Any]:
    return {
        "step": difference.step,
        **difference.place._asdict(),
        "ranks_a": list(difference.ranks_a),
        "ranks_b": list(difference.ranks_b),
        "a": _digest_data(difference.a),
        "b": _digest_data(difference.b),
        "amounts": {name: _number(amount) for name, amount in difference.amounts.items()},
    }


def _digest_data(digest: Digest) -> dict[str, Any]:
    return {name: _number(value) if isinstance(value, float) else value for name, value in asdict(digest).items()} | {
        "mean": _number(digest.mean),
        "norm": _number(digest.norm),
    }


def _number(value: float) -> float | str:
    """JSON knows no NaN and no infinity: those are given as text."""
    return value if math.isfinite(value) else str(value)
