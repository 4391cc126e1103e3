"""What happened to the patches and which operators ran: JSON for tools, a table for people, a line for the log."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Outcome

SCHEMA = 2


def summary_line(outcomes: Iterable[Outcome], *, version: str, device: str, upstream: str) -> str:
    """One line: "ascend_patch 0.1.0 · device cpu · Megatron-LM 0.19.2 · 31 patches applied, 2 skipped".

    Patches whose module was not imported, and failed ones (drift allowed), are counted only if there are any.
    """
    counts = Counter(outcome.status for outcome in outcomes)
    text = f"{counts['applied']} patches applied, {counts['skipped']} skipped"
    text += f", {counts['pending']} not needed so far" if counts["pending"] else ""
    text += f", {counts['failed']} failed" if counts["failed"] else ""
    return f"ascend_patch {version} · device {device} · Megatron-LM {upstream} · {text}"


def to_json(
    outcomes: Iterable[Outcome], *, operators: Mapping[str, Any], version: str, device: str, upstream: str
) -> dict[str, Any]:
    """The record of a run: `schema`, `ascend_patch`, `device`, `megatron`, `counts`, `patches` and `operators`.

    `operators` is passed on as it is: by operator, its `variant`, its `calls` by function and variant, and the
    `unsupported` calls that the variant left to another, by reason.
    """
    rows = [asdict(outcome) for outcome in outcomes]
    counts = Counter(row["status"] for row in rows)
    return {
        "schema": SCHEMA,
        "ascend_patch": version,
        "device": device,
        "megatron": upstream,
        "counts": {status: counts[status] for status in ("applied", "skipped", "pending", "failed")},
        "patches": rows,
        "operators": dict(operators),
    }


def write_json(
    path: Path,
    outcomes: Iterable[Outcome],
    *,
    operators: Mapping[str, Any],
    version: str,
    device: str,
    upstream: str,
) -> None:
    """Write `to_json` to `path`, the whole file or nothing. Missing folders are made."""
    data = to_json(outcomes, operators=operators, version=version, device=device, upstream=upstream)
    write_text(Path(path), json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        AscendPatchError: the file is missing, is not such a record, or has an unknown schema.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AscendPatchError(
            f"{path} is not a readable report: {error}. Name the file a run wrote "
            "(ASCEND_PATCH_REPORT, or runs/<name>/patches.json)."
        ) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise AscendPatchError(f"{path} has schema {found!r}; this version reads {SCHEMA}. Record the run anew.")
    return data


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Plain-text table: columns padded to their widest cell, two blanks between them."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def write_text(path: Path, text: str) -> None:
    """Write the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
