"""Finds in the log of a failed training run what made it fail."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

EXCERPT_LINES = 25
_RANK = re.compile(r"^(?:\[(?:rank|default)\d+\]:\s?)+")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?::.*)?$")
_LAUNCHER = "torch.distributed.elastic"  # torchrun's own exceptions only say that a rank failed
_USAGE = re.compile(r"^\S+: error: ")
_OWN = "ascend_patch: "  # how ascend_patch shows an error of its own, without a traceback
_KILLED = re.compile(r"\(exitcode: -(\d+)\) local_rank: (\d+)")
_ELSEWHERE = re.compile(r"^(?:[EWI]\d{4} |Traceback |\S+Warning|\[|=+$)")


@dataclass(frozen=True)
class Failure:
    """``reason`` in one paragraph, and the lines of the log that led to it."""

    reason: str
    excerpt: list[str]


def find_failure(log: Sequence[str]) -> Failure:
    """The exception of the rank that failed first, or the signal that ended one, or an admission.

    Args:
        log: the lines of the log, all of them or the last few thousand.
    """
    lines = [_RANK.sub("", line.rstrip("\n")) for line in log]
    for index, line in enumerate(lines):
        if match := _KILLED.search(line):
            number = int(match[1])
            hint = " Perhaps memory ran out." if number == signal.SIGKILL else ""
            name = signal.Signals(number).name
            return Failure(f"Rank {match[2]} was ended by {name}.{hint}", _up_to(lines, index))
        exception = _EXCEPTION.match(line) and not line.startswith(_LAUNCHER)
        if exception or _USAGE.match(line) or line.startswith(_OWN):
            return Failure(_paragraph(lines, index).removeprefix(_OWN), _up_to(lines, index))
    return Failure("The log names no reason.", _up_to(lines, len(lines)))


def _up_to(lines: Sequence[str], index: int) -> list[str]:
    return list(lines[max(0, index + 1 - EXCERPT_LINES) : index + 1])


def _paragraph(lines: Sequence[str], start: int) -> str:
    """The line of the exception and the rest of its message, up to whatever else is printed next."""
    message = [lines[start].strip()]
    for line in lines[start + 1 : start + 10]:
        if not line.strip() or _ELSEWHERE.match(line) or _EXCEPTION.match(line):
            break
        message.append(line.strip())
    return " ".join(message)
