"""Children that hear SIGINT even where the tests run in the background, whose jobs a shell lets ignore it."""

import signal


def hear_interrupts() -> None:
    """For ``preexec_fn``: what is ignored when Python starts never becomes a KeyboardInterrupt."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
