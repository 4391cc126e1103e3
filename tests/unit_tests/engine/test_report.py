"""The record of a run."""

import json

import pytest

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Outcome
from ascend_patch.engine.report import read_json, summary_line, table, to_json, write_json

FACTS = {"version": "0.1.0", "device": "cpu", "upstream": "0.19.2"}
APPLIED = Outcome("a.b", "up:f", "applied", notices=("noticed",))
OPERATORS = {"permute": {"variant": "npu", "calls": {"permute": {"npu": 3}}, "unsupported": {}}}
SKIPPED = Outcome("a.c", "up:g", "skipped", "disabled by id")


def test_summary_line():
    line = summary_line([APPLIED, APPLIED, SKIPPED], **FACTS)
    assert line == "ascend_patch 0.1.0 · device cpu · Megatron-LM 0.19.2 · 2 patches applied, 1 skipped"


def test_summary_line_tells_what_is_not_as_hoped():
    line = summary_line([Outcome("a", "up:f", "pending"), Outcome("b", "up:f", "failed", "gone")], **FACTS)
    assert line.endswith("0 patches applied, 0 skipped, 1 not needed so far, 1 failed")


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "patches.json"
    write_json(path, [APPLIED, SKIPPED], operators=OPERATORS, **FACTS)
    assert read_json(path) == json.loads(json.dumps(to_json([APPLIED, SKIPPED], operators=OPERATORS, **FACTS)))
    data = read_json(path)
    assert (data["schema"], data["device"], data["megatron"]) == (2, "cpu", "0.19.2")
    assert data["operators"] == OPERATORS
    assert data["counts"] == {"applied": 1, "skipped": 1, "pending": 0, "failed": 0}
    assert data["patches"][1] == {
        "id": "a.c",
        "target": "up:g",
        "status": "skipped",
        "detail": "disabled by id",
        "notices": [],
    }


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "patches.json"
    write_json(path, [APPLIED], operators={}, **FACTS)
    before = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, [SKIPPED], operators={}, **FACTS)
    assert path.read_text() == before


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', "{"])
def test_not_a_report(tmp_path, text):
    path = tmp_path / "patches.json"
    path.write_text(text)
    with pytest.raises(AscendPatchError, match=r"patches\.json"):
        read_json(path)


def test_missing_report(tmp_path):
    with pytest.raises(AscendPatchError, match="ASCEND_PATCH_REPORT"):
        read_json(tmp_path / "none.json")


def test_table():
    assert table(["a", "long"], [["wide cell", ""], ["x", "y"]]).splitlines() == [
        "a          long",
        "---------  ----",
        "wide cell",
        "x          y",
    ]
