"""How far a run is: a bar on a terminal, lines in a log."""

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 1.0


class Progress:
    """Shows bytes of the input, tokens a second and the time left; a context manager.

    Args:
        total: bytes of all inputs; None if that is not known.
        documents, tokens, done: where the run goes on: what is there before it begins.
        log_interval: without a terminal, a line comes after this many documents, at most one a second.
    """

    def __init__(
        self,
        total: int | None,
        log_interval: int,
        done: int = 0,
        documents: int = 0,
        tokens: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        self._total = total
        self._interval = log_interval
        self._first_done, self._first_tokens = done, tokens
        self._logged_documents, self._logged_at = documents, 0.0
        self._started = time.monotonic()
        self._bar: Any = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=done, unit="B", unit_scale=True, dynamic_ncols=True, file=self._stream, leave=False
            )

    def update(self, done: int, documents: int, tokens: int) -> None:
        """What is done by now, in all."""
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = f"{_short((tokens - self._first_tokens) / elapsed)} tokens/s"
        if self._bar is not None:
            self._bar.set_postfix_str(rate, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if documents - self._logged_documents < self._interval or now - self._logged_at < SECONDS_BETWEEN_LINES:
            return
        self._logged_documents, self._logged_at = documents, now
        line = f"{documents:,} documents, {tokens:,} tokens, {rate}"
        if self._total and done > self._first_done:
            left = elapsed * max(self._total - done, 0) / (done - self._first_done)
            line += f", {done / self._total:.0%}, {tqdm.format_interval(left)} left"
        self.say(line)

    def say(self, line: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _short(value: float) -> str:
    return tqdm.format_sizeof(value) if value >= 1000 else f"{value:.0f}"
