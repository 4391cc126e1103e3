"""The releases of upstream that carry the training loop, each as something to put on the path."""

import re
from importlib.metadata import version
from pathlib import Path

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
