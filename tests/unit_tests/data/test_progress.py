"""What a run says about itself."""

import io
import re

from ascend_patch.data import progress
from ascend_patch.data.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_in_a_log(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    log = io.StringIO()
    with Progress(1000, 10, stream=log) as shown:
        shown.update(100, 9, 4000)
        shown.update(250, 12, 5000)
        shown.update(260, 13, 5200)
    (line,) = log.getvalue().splitlines()
    assert re.fullmatch(r"12 documents, 5,000 tokens, [\d.]+[kMGT] tokens/s, 25%, \d\d:\d\d left", line)


def test_lines_are_a_second_apart():
    log = io.StringIO()
    with Progress(None, 1, stream=log) as shown:
        for number in range(1, 100):
            shown.update(0, number, number)
    assert log.getvalue().count("\n") == 1
    assert "left" not in log.getvalue()


def test_what_an_earlier_run_did_is_not_counted_as_speed(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    clock = iter([100.0, 110.0, 110.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    log = io.StringIO()
    Progress(1000, 1, done=500, documents=50, tokens=1_000_000, stream=log).update(600, 60, 1_002_000)
    assert log.getvalue() == "60 documents, 1,002,000 tokens, 200 tokens/s, 60%, 00:40 left\n"


def test_a_bar_on_a_terminal():
    terminal = Terminal()
    with Progress(1000, 10, done=200, stream=terminal) as shown:
        shown.say("a line")
        shown.update(600, 12, 50_000)
    assert "a line\n" in terminal.getvalue()
    assert re.search(r"20%.*200/1.00k", terminal.getvalue())
