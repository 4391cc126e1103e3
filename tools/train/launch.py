"""Runs the training as a child, hands on its output line by line, and ends it with everything it started."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

GRACE_SECONDS = 60  # torchrun itself gives its ranks 30


def run_and_follow(
    command: Sequence[str], environ: Mapping[str, str], log: Path, on_line: Callable[[str], object]
) -> int:
    """Run ``command``, append its output to ``log`` and call ``on_line`` with each line.

    When this process is interrupted (Ctrl-C or SIGTERM), so is the child with all it started; what does
    not stop within ``GRACE_SECONDS`` is killed.

    Returns:
        The exit status as a shell counts it: 128 + N for a child ended by signal N.
    """
    previous = signal.signal(signal.SIGTERM, _interrupt)
    # A session of its own: a Ctrl-C at the terminal reaches torchrun through us only, once.
    child = subprocess.Popen(
        list(command),
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        start_new_session=True,
    )
    try:
        with log.open("a", encoding="utf-8") as file:
            for line in child.stdout or ():
                file.write(line)
                file.flush()
                on_line(line)
        status = child.wait()
    finally:
        _end(child)
        signal.signal(signal.SIGTERM, previous)
    return status if status >= 0 else 128 - status


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end(child: subprocess.Popen) -> None:
    if child.poll() is not None:
        return
    os.killpg(child.pid, signal.SIGTERM)  # torchrun passes it on to its ranks
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
