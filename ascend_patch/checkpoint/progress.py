"""What a long conversion tells whoever waits for it; the library itself prints nothing."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Shows what goes on."""

    def say(self, text: str) -> None:
        """Show one line."""

    def bar(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Callable[[int], None]]:
        """Show a bar of ``total`` bytes, of which ``done`` are done; what is returned is told of further ones."""


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""

    def bar(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Callable[[int], None]]:
        """Show nothing."""
        return nullcontext(lambda nbytes: None)
