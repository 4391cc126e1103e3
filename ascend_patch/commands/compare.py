"""`ascend-patch compare`: do two runs agree, for example one on NPUs with one on GPUs?

A and B are logs of Megatron-LM (0.12 to 0.19, with or without this plugin) or folders that it wrote for TensorBoard.
B is measured against A: a number of B is within tolerance if it differs from that of A by no more than
absolute + relative * |A|. The defaults: 0.01 (1 %) for every loss, 0.1,0.001 for the gradient norm.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

from ascend_patch.commands.output import print_json, print_table
from ascend_patch.runs.compare import Comparison, Pair, Quantity, Tolerance, compare, different_arguments
from ascend_patch.runs.read import read
from ascend_patch.runs.run import LOSS, Run, ranges
from ascend_patch.runs.throughput import Throughput, throughput

HELP = "do two runs agree: losses, gradient norms, throughput"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("a", metavar="A", type=Path, help="log or TensorBoard folder of the reference")
    parser.add_argument("b", metavar="B", type=Path, help="log or TensorBoard folder of the other run")
    parser.add_argument(
        "--tolerance",
        action="append",
        default=[],
        type=_tolerance,
        metavar="[QUANTITY=]RELATIVE[,ABSOLUTE]",
        help="how far B may be from A, for one quantity (grad-norm=0.05) or all others; QUANTITY=off: only show it",
    )
    parser.add_argument("--figure", metavar="FILE", type=Path, help="draw both runs and their difference (.png)")
    parser.add_argument("--names", metavar="A,B", type=_two, help="what to call the runs, such as GPU,NPU")
    parser.add_argument(
        "--devices", metavar="N[,N]", type=_numbers, help="number of devices, where a run did not record world_size"
    )
    parser.add_argument("--seq-length", metavar="N[,N]", type=_numbers, help="the same for seq_length")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 1 if B is beyond a tolerance."""
    comparison = compare(read(arguments.a), read(arguments.b), dict(arguments.tolerance))
    names = arguments.names or _names(arguments.a, arguments.b)
    devices, lengths = arguments.devices or (None, None), arguments.seq_length or (None, None)
    given = zip((comparison.a, comparison.b), devices, lengths, strict=True)
    speeds = [throughput(run, count, length) for run, count, length in given]
    if arguments.figure:
        from ascend_patch.runs.figure import draw

        draw(comparison, names, arguments.figure)
    if arguments.json:
        print_json(_data(comparison, names, speeds))
    else:
        _print(comparison, names, speeds)
    return int(comparison.first_beyond is not None)


def _tolerance(text: str) -> tuple[str, Tolerance | None]:
    """The quantity ("" for all others) and its tolerance, None for "off"."""
    quantity, _, numbers = text.rpartition("=")
    quantity = re.sub(r"[-\s]+", " ", quantity).strip()
    if numbers == "off" and quantity:
        return quantity, None
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 2 or not all(0 <= value < math.inf for value in values):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not [QUANTITY=]RELATIVE[,ABSOLUTE] with numbers from 0 on, "
            "such as 0.01 or grad-norm=0.1,0.001"
        )
    return quantity, Tolerance(*values)


def _two(text: str) -> tuple[str, str]:
    names = tuple(name.strip() for name in text.split(","))
    if len(names) != 2 or not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not two names with a comma between them")
    return names[0], names[1]


def _numbers(text: str) -> tuple[int, int]:
    """One number for both runs, or one for each."""
    numbers = [int(number) if number.isdecimal() else 0 for number in text.split(",")]
    if len(numbers) > 2 or not all(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number, or two with a comma between them")
    return numbers[0], numbers[-1]


def _names(a: Path, b: Path) -> tuple[str, str]:
    """The shortest ends of the paths that differ."""
    ends = zip(_ends(a), _ends(b), strict=False)
    return next(((one, other) for one, other in ends if one != other), ("A", "B"))


def _ends(path: Path) -> list[str]:
    parts = path.resolve().parts[1:]
    return ["/".join(parts[-length:]) for length in range(1, len(parts) + 1)]


def _print(comparison: Comparison, names: tuple[str, str], speeds: list[Throughput]) -> None:
    print_table(
        ["run", "name", "iterations", "starts", "samples/s", "tokens/s per device", "s/step", "median of"],
        _speed_rows(comparison, names, speeds),
    )
    print()
    print_table(
        ["quantity", "compared", "largest difference", "in iteration", "mean", "tolerance", "first beyond"],
        [_row(quantity) for quantity in comparison.quantities],
    )
    sentences = [*comparison.settings, *comparison.notes, *_run_notes(comparison.a, comparison.b)]
    if sentences:
        print()
    for sentence in sentences:
        print(f"- {sentence}.")
    print(f"\n{verdict(comparison)}")


def _speed_rows(comparison: Comparison, names: tuple[str, str], speeds: list[Throughput]) -> list[list[str]]:
    rows = []
    for letter, name, one, speed in zip("AB", names, (comparison.a, comparison.b), speeds, strict=True):
        figures = [_figure(value) for value in (speed.samples, speed.tokens, speed.seconds)]
        steady = f"{speed.iterations} steps" if speed.iterations else "-"
        rows.append([letter, name, ranges(one.iterations(), 3), str(one.processes), *figures, steady])
    ratios = [
        _figure(b / a) if a and b else "-"
        for a, b in (
            (speeds[0].samples, speeds[1].samples),
            (speeds[0].tokens, speeds[1].tokens),
            (speeds[0].seconds, speeds[1].seconds),
        )
    ]
    return [*rows, ["B/A", "", "", "", *ratios, ""]]


def _row(quantity: Quantity) -> list[str]:
    largest, beyond = quantity.largest, quantity.first_beyond
    return [
        quantity.name,
        str(quantity.compared),
        _percent(abs(largest.relative)),
        _where(largest) if largest.difference else "-",
        _percent(quantity.mean_relative),
        str(quantity.tolerance) if quantity.tolerance else "off",
        _where(beyond) if beyond else "none" if quantity.tolerance else "-",
    ]


def _run_notes(a: Run, b: Run) -> list[str]:
    """What is special about A, about B, or about both alike."""
    both = [f"A and B: {note}" for note in a.notes if note in b.notes]
    return (
        both
        + [f"A: {note}" for note in a.notes if note not in b.notes]
        + [f"B: {note}" for note in b.notes if note not in a.notes]
    )


def verdict(comparison: Comparison) -> str:
    """One sentence: within tolerance, or what leaves it first and where."""
    quantity = comparison.first_beyond
    pair = quantity.first_beyond if quantity else None
    if quantity is None or pair is None:
        judged = [one.name for one in comparison.quantities if one.tolerance]
        compared = next(one.compared for one in comparison.quantities if one.name == LOSS)
        return f"Within tolerance: {', '.join(judged)}, over {compared} iterations."
    return (
        f"Beyond tolerance: {quantity.name} first, in iteration {_where(pair)}: {pair.a.value:.9g} in A, "
        f"{pair.b.value:.9g} in B ({_percent(pair.relative, '+')}, allowed {quantity.tolerance})."
    )


def _where(pair: Pair) -> str:
    return str(pair.a.last) if pair.a.first == pair.a.last else f"{pair.a.first}-{pair.a.last}"


def _percent(part: float, sign: str = "") -> str:
    return f"{100 * part:{sign}.2g} %" if part else "0"


def _figure(value: float | None) -> str:
    """Four digits, without an exponent."""
    if value is None:
        return "-"
    return f"{value:,.1f}" if value >= 1000 else f"{value:.4g}"


def _data(comparison: Comparison, names: tuple[str, str], speeds: list[Throughput]) -> dict[str, Any]:
    runs = {
        letter: {
            "name": name,
            "path": str(one.path),
            "iterations": len(one.iterations()),
            "starts": one.processes,
            "throughput": vars(speed),
            "notes": list(one.notes),
        }
        for letter, name, one, speed in zip("ab", names, (comparison.a, comparison.b), speeds, strict=True)
    }
    beyond = comparison.first_beyond
    return {
        **runs,
        "quantities": [_quantity_data(quantity) for quantity in comparison.quantities],
        "settings": list(comparison.settings),
        "arguments": {name: list(pair) for name, pair in different_arguments(comparison.a, comparison.b).items()},
        "notes": list(comparison.notes),
        "first_beyond": beyond.name if beyond else None,
        "within_tolerance": beyond is None,
    }


def _quantity_data(quantity: Quantity) -> dict[str, Any]:
    beyond = quantity.first_beyond
    return {
        "name": quantity.name,
        "compared": quantity.compared,
        "tolerance": vars(quantity.tolerance) if quantity.tolerance else None,
        "largest": _pair_data(quantity.largest),
        "mean_relative": _number(quantity.mean_relative),
        "first_beyond": _pair_data(beyond) if beyond else None,
    }


def _pair_data(pair: Pair) -> dict[str, Any]:
    return {
        "first_iteration": pair.a.first,
        "iteration": pair.a.last,
        "a": _number(pair.a.value),
        "b": _number(pair.b.value),
        "relative": _number(pair.relative),
    }


def _number(value: float) -> float | str:
    """JSON knows no NaN and no infinity: those are given as text."""
    return value if math.isfinite(value) else str(value)
