"""The releases of upstream that carry the training loop, each as something to put on the path."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from tests.system_tests.launcher import ROOT

INSTALLED = version("megatron-core")
_PINNED = re.findall(r"^megatron-core==(\S+)", (ROOT / "requirements-megatron.txt").read_text(), re.MULTILINE)

#: Oldest first. Before 0.17 the wheel has no ``megatron.training``.
TRAINABLE = sorted({v for v in [*_PINNED, INSTALLED] if Version(v) >= Version("0.17")}, key=Version)


def folder(release: str) -> Path | None:
    """What to put on the path for ``release``: nothing for the installed one."""
    if release == INSTALLED:
        return None
    place = ROOT / ".cache" / "megatron" / release
    if not place.is_dir():
        raise FileNotFoundError(f"{place} is missing. `make megatron` unpacks the releases that the tests use.")
    return place


def parameters(slow_before: str | None = None, slow_between: bool = False) -> list:
    """The releases as parameters of a test, each on one worker.

    Args:
        slow_before: those before it are marked slow.
        slow_between: all but the oldest and the newest are.
    """
    found = []
    for release in TRAINABLE:
        is_slow = slow_before is not None and Version(release) < Version(slow_before)
        is_slow = is_slow or (slow_between and release not in (TRAINABLE[0], TRAINABLE[-1]))
        marks = [pytest.mark.xdist_group(release)] + [pytest.mark.slow] * is_slow
        found.append(pytest.param(release, marks=marks, id=release))
    return found
