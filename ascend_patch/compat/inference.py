"""Upstream's inference engine: what a release of it can do, and what it leaves behind in a process."""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.core.inference import utils
from packaging.version import Version

from ascend_patch.compat.upstream import locate


def keeps_prefixes() -> bool:
    """Whether the cache may keep the beginnings of prompts for other requests.

    Upstream has it from 0.17 on. Before 0.19 it gives a block away that a request is about to use where memory is
    short, and counts requests that end together as one, so that blocks are lost for good.
    """
    return Version(locate().version) >= Version("0.19.0")


@contextmanager
def without_engine() -> Iterator[None]:
    """Forward passes as in training, though an engine may have been made in this process.

    From 0.18 on an engine switches the whole process; 0.17 goes by what is passed to the model.
    """
    mode = getattr(utils, "InferenceMode", None)
    if mode is None or not mode.is_active():
        yield
        return
    mode.unset_active()
    try:
        yield
    finally:
        mode.set_active()
