"""What upstream's inference engine leaves behind in a process."""

from collections.abc import Iterator
from contextlib import contextmanager

from megatron.core.inference import utils


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
