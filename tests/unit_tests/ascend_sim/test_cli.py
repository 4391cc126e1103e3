"""`ascend-sim run`: the command's environment, its exit code, its signals and its report. No device is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ascend_sim import cli
from ascend_sim.build import Pair

REPORTING = """
import json, os, pathlib
folder = pathlib.Path(os.environ["ASCEND_SIM_REPORT_DIRECTORY"])
for rank in (1, 0):
    (folder / f"rank{rank}-{os.getpid()}.json").write_text(json.dumps({"rank": rank, "steps": []}))
"""


@pytest.fixture
def built(monkeypatch, tmp_path):
    """As if everything had been downloaded and built."""
    monkeypatch.setattr(cli, "find_pair", lambda download: Pair(tmp_path, "2.9.1", tmp_path / "torch_npu", "2.9.1"))
    monkeypatch.setattr(cli, "build", lambda pair: tmp_path / "libraries")


def run(*options: str, code: str) -> int:
    return cli.main(["run", *options, "--", sys.executable, "-c", code])


def test_the_command_finds_the_libraries(built, tmp_path, capfd):
    names = "LD_LIBRARY_PATH", "ASCEND_SIM_DEVICES"
    assert run("--devices", "3", code=f"import os; print(*(os.environ[name] for name in {names}))") == 0
    path, devices = capfd.readouterr().out.split()
    assert path.split(os.pathsep)[0] == str(tmp_path / "libraries")
    assert devices == "3"


@pytest.mark.parametrize(("options", "found"), [((), "0"), (("--shapes-only",), "1")])
def test_attention_is_computed_unless_told(built, capfd, options, found):
    assert run(*options, code="import os; print(os.environ['ASCEND_SIM_SHAPES_ONLY'])") == 0
    assert capfd.readouterr().out.strip() == found


def test_the_command_s_exit_code(built):
    assert run(code="raise SystemExit(7)") == 7
    assert run(code="import os; os.kill(os.getpid(), 9)") == 128 + 9


def test_handlers_are_restored(built):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(code="pass")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(3)"], ids=["well", "badly"])
def test_the_report_is_written_however_the_command_ends(built, tmp_path, end):
    target = tmp_path / "new" / "run.json"
    run("--report", str(target), code=REPORTING + end)
    assert [process["rank"] for process in json.loads(target.read_text())["ranks"]] == [0, 1]


def test_an_unknown_command(built, capsys):
    assert cli.main(["run", "--", "no-such-command-anywhere"]) == 2
    assert "no-such-command-anywhere" in capsys.readouterr().err


def test_sigterm_reaches_the_command(tmp_path):
    """A job's manager ends `ascend-sim`; the command must not be left behind."""
    ready = tmp_path / "ready"
    child = f"import pathlib, time; pathlib.Path({str(ready)!r}).write_text('x'); time.sleep(60)"
    script = f"""
import os, sys
from ascend_sim.cli import _run
sys.exit(_run([sys.executable, "-c", {child!r}], dict(os.environ)))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
