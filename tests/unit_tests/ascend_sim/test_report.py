"""Gathering, reading and comparing reports."""

import json

import pytest

from ascend_sim import report
from ascend_sim.cli import main
from ascend_sim.report import ReportError


def a_step(kind="step", launches=1, syncs=0):
    return {
        "kind": kind,
        "launches": [
            {"scope": "a", "name": "aten::mul", "count": launches, "bytes_read": 2**20, "bytes_written": 2**21},
            {"scope": "b", "name": "aten::mul", "count": launches, "bytes_read": 0, "bytes_written": 0},
        ],
        "syncs": [{"scope": "", "name": "aten::item", "count": syncs}],
        "uploads": [],
        "collectives": [{"scope": "", "name": "all_reduce", "group": "tp", "count": 3, "bytes": 2**20}],
        "peak_memory_bytes": 2**30,
    }


@pytest.fixture
def written(tmp_path):
    def write(name, *steps, ranks=1):
        folder = tmp_path / f"{name}-processes"
        folder.mkdir()
        for rank in reversed(range(ranks)):
            content = {"rank": rank, "steps": list(steps)}
            (folder / f"rank{rank}-1.json").write_text(json.dumps(content))
        (folder / "rank0-2.part").write_text("half")
        assert report.gather(folder, tmp_path / "new" / name) == ranks
        return tmp_path / "new" / name

    return write


def test_ranks_are_in_order(written):
    assert [process["rank"] for process in report.read(written("r", a_step(), ranks=3))["ranks"]] == [0, 1, 2]


def test_the_last_step_counts(written):
    path = written("r", a_step(launches=9), a_step(launches=2), a_step("outside of steps", launches=7))
    assert report.last_step(report.read(path))["launches"][0]["count"] == 2


def test_a_rank_that_is_not_there(written):
    with pytest.raises(ReportError, match=r"nothing of rank 4; it has ranks \[0\]"):
        report.last_step(report.read(written("r", a_step())), rank=4)


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 0}'], ids=["empty", "list", "schema"])
def test_a_file_that_is_no_report(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ReportError, match="x.json"):
        report.read(path)


def test_two_reports_side_by_side(written):
    reports = {name: report.read(written(name, a_step(launches=n))) for name, n in (("one", 4), ("two", 1))}
    rows = {row[0]: row[1:] for row in report.summary(reports)}
    assert rows["launches"] == ["8", "2", "0.25"]
    assert rows["bytes read"] == ["1.00 MiB", "1.00 MiB", "1.00"]
    assert rows["host syncs"] == ["0", "0", "-"]
    assert rows["peak memory"] == ["1,024.00 MiB", "1,024.00 MiB", "1.00"]
    assert report.by_name(reports, "launches") == [["aten::mul", "8", "2", "0.25"]]


def test_the_command_prints_tables(written, capsys):
    one, two = written("one.json", a_step()), written("two.json", a_step(launches=5))
    assert main(["report", str(one), str(two)]) == 0
    printed = capsys.readouterr().out
    assert "aten::mul" in printed and "5.00" in printed and "simulated" in printed


def test_the_command_names_a_file_that_is_missing(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none.json")]) == 2
    assert "none.json cannot be read as a report" in capsys.readouterr().err


def test_a_command_that_is_missing(capsys):
    assert main(["run"]) == 2
    assert "No command was given" in capsys.readouterr().err
