"""Finds in the log of a failed training run what made it fail."""

import re
import signal
from collections.abc import Sequence

_PREFIX = re.compile(r"^(?:\[[^\]]*rank\d+\]:\s?|\[default\d+\]:\s?)+")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?::.*)?$")
_EXIT_CODE = re.compile(r"\(exitcode: (-\d+)\) local_rank: (\d+)")
_LAUNCHER = ("torch.distributed.elastic", "torch.distributed.DistNetworkError")
_USAGE = re.compile(r"^\S+: error: ")


def reason(log: Sequence[str]) -> str:
    """One paragraph: the exception of the rank that failed first, or the signal that ended it.

    Args:
        log: the lines of the log, all of them or the last few hundred.

    Returns:
        The text, or an admission that the log does not say.
    """
    lines = [_PREFIX.sub("", line.rstrip("\n")) for line in log]
    for index, line in enumerate(lines):
        if _USAGE.match(line):
            return line
        if _EXCEPTION.match(line) and not line.startswith(_LAUNCHER):
            return _paragraph(lines, index)
    for line in lines:
        if match := _EXIT_CODE.search(line):
            number = -int(match[1])
            hint = " Perhaps memory ran out." if number == signal.SIGKILL else ""
            return f"Rank {match[2]} was ended by signal {number} ({signal.Signals(number).name}).{hint}"
    return "The log names no reason."


def _paragraph(lines: Sequence[str], start: int) -> str:
    """The line of the exception and the rest of its message, up to whatever else is printed next."""
    message = [lines[start].strip()]
    for line in lines[start + 1 :]:
        if (
            not line.strip()
            or re.match(r"^(?:[EWI]\d{4} |Traceback |\S+Warning|\[)", line)
            or len(message) == 10
        ):
            break
        message.append(line.strip())
    return " ".join(message)
