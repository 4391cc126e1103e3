"""The report of a verification, from the results that pytest writes."""

import json
import subprocess
from pathlib import Path

import pytest

from tools import verify_npu

RESULTS = """<testsuites><testsuite>
<testcase classname="tests.ops.test_a" name="test_good" time="0.5"/>
<testcase classname="tests.ops.test_a" name="test_bad" time="1"><failure message="off by one">trace</failure></testcase>
<testcase classname="tests.ops.test_b" name="test_left_out" time="0"><skipped message="no"/></testcase>
<testcase classname="tests.ops.test_b" name="test_losses" time="3">
<properties><property name="losses on npu" value="6.9 6.8"/></properties></testcase>
</testsuite></testsuites>"""
FACTS = {"simulated": True, "device": "Ascend910B1"}


@pytest.fixture
def tests(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(RESULTS)
    return verify_npu.read_results(path)


def test_outcomes(tests):
    assert [test["outcome"] for test in tests] == ["passed", "failed", "skipped", "passed"]
    assert tests[1]["message"] == "off by one"


def test_markdown(tests):
    text = verify_npu.markdown(FACTS, tests)
    assert "the simulated device, not an NPU" in text
    assert "| tests.ops.test_a | 1 | 1 | 0 |" in text
    assert "- losses on npu: 6.9 6.8" in text
    assert "## Failed: tests.ops.test_a::test_bad" in text and "off by one" in text


GOOD = RESULTS.replace("failure", "system-out")
SKIPPED = '<testsuites><testcase classname="a" name="b" time="0"><skipped message="no"/></testcase></testsuites>'


@pytest.mark.parametrize(
    ("results", "pytest_s", "code"),
    [(RESULTS, 1, 1), (GOOD, 0, 0), (GOOD, 2, 1), (SKIPPED, 0, 1), (None, 4, 1)],
    ids=["failure", "good", "interrupted", "all skipped", "not started"],
)
def test_exit_code(monkeypatch, tmp_path, results, pytest_s, code):
    def run(command, cwd):
        if results is not None:
            Path(command[command.index("--junitxml") + 1]).write_text(results)
        return subprocess.CompletedProcess(command, pytest_s)

    monkeypatch.setattr(verify_npu, "machine", lambda: FACTS)
    monkeypatch.setattr(subprocess, "run", run)
    assert verify_npu.main(["--out", str(tmp_path)]) == code
    if results in (RESULTS, GOOD):
        assert len(json.loads((tmp_path / "report.json").read_text())["tests"]) == 4


def test_without_an_npu(monkeypatch, capsys):
    monkeypatch.delattr("torch.npu", raising=False)
    assert verify_npu.main([]) == 2
    assert "ascend-sim run" in capsys.readouterr().err
