"""Conversations with an Instruct model: from messages to a prompt, and back to an answer that appears as it is made."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

import numpy as np

from ascend_patch.data.conversations import from_messages
from ascend_patch.data.errors import DataError
from ascend_patch.data.templates import Template
from ascend_patch.generation.base_engine import BaseEngine, Request
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import SamplingOptions

_ANSWER = {"role": "assistant", "content": "."}
"""Stands where the model's answer will be."""
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a character becomes whose bytes are not all there yet."""


def prompt_ids(template: Template, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """The token ids after which the model answers the last of ``messages``, as it was tuned with ``template``.

    Args:
        messages: ``{"role": "system" | "user" | "assistant", "content": text}``, the last from the user.

    Raises:
        GenerationError: they are no such conversation, or the template cannot render it.
    """
    if not messages or messages[-1].get("role") != "user":
        raise GenerationError("The last message must be the user's: it is the one that is answered.")
    try:
        conversation = from_messages({"messages": [*messages, _ANSWER]})
        template.check(conversation)
        (example,) = template.encode([conversation])
    except DataError as error:
        raise GenerationError(f"The messages are no conversation: {error}") from error
    begins = np.flatnonzero(np.diff(example.learned.astype(np.int8), prepend=0) == 1)
    return example.ids[: begins[-1]].tolist()


def new_text(request: Request, shown: int) -> str:
    """What can be shown of a request after its first ``shown`` characters: no half characters, nor half a stop text."""
    text = request.text
    if request.finish is None:
        text = text.rstrip(_INCOMPLETE)
        text = text[: len(text) - _may_begin(text, request.options.stop)]
    return text[shown:]


def _may_begin(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of one of ``stops``."""
    return max(
        (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])),
        default=0,
    )


class Chat:
    """One conversation, of which the engine answers one message after the other."""

    def __init__(
        self, engine: BaseEngine, template: Template, options: SamplingOptions, system: str | None = None
    ) -> None:
        self._engine = engine
        self._template = template
        self._options = options
        self._first = [{"role": "system", "content": system}] if system else []
        self.clear()

    def clear(self) -> None:
        """Forget what has been said, but for the system's message."""
        self.messages: list[dict[str, str]] = list(self._first)

    def answer(self, message: str) -> Iterator[str]:
        """The answer, in pieces as they are generated. Both become part of the conversation when it is complete.

        Raises:
            GenerationError: the message is empty, or the conversation has become too long.
        """
        messages = [*self.messages, {"role": "user", "content": message}]
        # Every answer draws anew.
        options = replace(self._options, seed=self._options.seed + len(messages))
        request = self._engine.submit(prompt_ids(self._template, messages), options, begins_anew=True)
        shown = 0
        while request.finish is None:
            self._engine.step()
            piece = new_text(request, shown)
            shown += len(piece)
            if piece:
                yield piece
        # A template wants an answer; the model may have had none.
        self.messages = [*messages, {"role": "assistant", "content": request.text.strip() or "."}]


class Terminal:
    """Where messages are read and answers shown."""

    def __init__(self, source: TextIO, target: TextIO) -> None:
        self._source = source
        self._target = target

    def read(self) -> str | None:
        """The next message, without blank ones; None at ``/quit`` and at the end of input."""
        while True:
            if self._source.isatty():
                self.show("> ")
            line = self._source.readline()
            if not line or line.strip() == "/quit":
                return None
            if line.strip():
                return line.strip()

    def show(self, text: str) -> None:
        """Show a piece of an answer at once."""
        self._target.write(text)
        self._target.flush()
