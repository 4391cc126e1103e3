"""Printing for the commands: JSON, or a table (rich in a terminal, plain text into a pipe)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ascend_patch.engine.report import table


def print_json(data: Any) -> None:
    """Print `data` as indented JSON."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose cells are plain text."""
    rows = [tuple(row) for row in rows]
    if not sys.stdout.isatty():
        print(table(header, rows))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(*header, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    Console().print(shown)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
