"""Running a child: its lines, its status, and that nothing of it is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tools.train.launch import run_and_follow


def test_lines_are_passed_on_and_logged(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("before\n")
    seen = []
    status = run_and_follow(
        ["bash", "-c", "echo one; echo two >&2; echo $WORD"], {**os.environ, "WORD": "three"}, log, seen.append
    )
    assert status == 0
    assert seen == ["one\n", "two\n", "three\n"]
    assert log.read_text() == "before\none\ntwo\nthree\n"


@pytest.mark.parametrize(("command", "status"), [("exit 3", 3), ("kill -KILL $$", 128 + signal.SIGKILL)])
def test_the_status_is_that_of_a_shell(tmp_path, command, status):
    assert run_and_follow(["bash", "-c", command], os.environ, tmp_path / "log", lambda line: None) == status


def test_sigterm_ends_the_child_and_what_it_started(tmp_path):
    children = []

    def on_line(line):
        children.append(int(line))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()

    with pytest.raises(KeyboardInterrupt):
        run_and_follow(["bash", "-c", "sleep 600 & echo $!; wait"], os.environ, tmp_path / "log", on_line)
    deadline = time.monotonic() + 10
    while _alive(children[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(children[0])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_output_that_is_no_text_does_no_harm(tmp_path):
    seen = []
    code = "import sys; sys.stdout.buffer.write(bytes([0xff, 0x0a]))"
    assert run_and_follow([sys.executable, "-c", code], os.environ, tmp_path / "log", seen.append) == 0
    assert seen == ["\ufffd\n"]


def _alive(process: int) -> bool:
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
    return bool(status.strip()) and not status.startswith("Z")
