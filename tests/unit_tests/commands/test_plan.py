"""`ascend-patch plan`: the table, JSON, the page, and what is refused."""

import json
from pathlib import Path

import pytest

from ascend_patch.cli import main
from ascend_patch.planning.plan import GIB

ROOT = Path(__file__).resolve().parents[3]
TINY = ["plan", "--model", "7b", "--devices", "8"]


def test_the_table(capsys) -> None:
    assert main(TINY) == 0
    printed = capsys.readouterr().out
    assert "Estimated by formula, not measured." in printed
    lines = printed.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("TP "))
    assert "sent EP" in lines[header] and lines[header + 2].rstrip().endswith("1.000")
    assert len(lines) == header + 2 + 10 + 1


def test_json(capsys) -> None:
    options = ["--memory", "32", "--sequence-length", "8192", "--global-batch-size", "64", "--json"]
    assert main([*TINY, *options]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["estimated"] is True and data["sequence_length"] == 8192 and data["memory"] == 32 * GIB
    first = data["layouts"][0]
    assert first["cost"] == 1 and first["tp"] * first["cp"] * first["pp"] * first["dp"] == 8
    *parts, total = first["memory"].values()
    assert sum(parts) == total <= 0.9 * 32 * GIB
    assert set(first["sent"]) == {"TP", "PP", "EP", "DP", "CP"}


def test_the_page_is_the_one_in_docs(tmp_path) -> None:
    assert main(["plan", "--markdown", str(tmp_path / "planning.md")]) == 0
    assert (tmp_path / "planning.md").read_text() == (ROOT / "docs" / "planning.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "8x9b", "--devices", "8"], "--model 8x9b is not known; allowed are 7b, 8x7b, 8x22b"),
        (["--devices", "8"], "--model and --devices must be given"),
        (["--model", "8x7b", "--devices", "7"], "No layout of Mixtral 8x7B has 7 devices"),
        (["--model", "8x22b", "--devices", "8"], "GiB would do"),
    ],
)
def test_what_is_refused(capsys, options: list[str], message: str) -> None:
    assert main(["plan", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err
