"""What an engine takes, and what it gives back: requests, and the steps in which they get their tokens.

In a job of several ranks every rank calls every method with the same arguments, in the same order, and gets the same
results. :meth:`BaseEngine.generate` shares the prompts out over the data parallel ranks; of requests that are submitted
one by one, each of these ranks works on all.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import Choice, SamplingOptions
from ascend_patch.generation.shares import Shares

Finish = Literal["stop", "length", "cancelled"]

_TOKENS_OF_A_CHARACTER = 4
"""At most, where a tokenizer falls back to bytes."""

_FILLER = ([0, 0], SamplingOptions(max_new_tokens=1, ignore_eos=True))
"""A request of a rank that has none: the experts on it are needed by the others."""


@dataclass
class Request:
    """A prompt and what has been generated for it so far."""

    id: int
    prompt: list[int]
    options: SamplingOptions
    tokenizer: Any
    begins_anew: bool = False
    """The text is an answer of its own, not the prompt's continuation, which may begin with a space."""
    tokens: list[int] = field(default_factory=list)
    """Generated tokens, without the one that ended the request."""
    choices: list[Choice] = field(default_factory=list)
    """One for each of :attr:`tokens`, where log-probabilities were asked for."""
    finish: Finish | None = None
    """None: it goes on."""

    @property
    def text(self) -> str:
        """The generated tokens as text, up to the first of the texts that end it."""
        text = self._decoded()
        return text[: self._stop_in(text)]

    def reached_stop(self) -> bool:
        """Whether one of the texts that end it is complete."""
        return bool(self.options.stop) and self._stop_in(self._decoded()) is not None

    def _decoded(self) -> str:
        before = [] if self.begins_anew else self.prompt[-_TOKENS_OF_A_CHARACTER:]
        start = len(self.tokenizer.decode(before, skip_special_tokens=True))
        return self.tokenizer.decode(before + self.tokens, skip_special_tokens=True)[start:]

    def _stop_in(self, text: str) -> int | None:
        """Where the first text that ends it begins."""
        return min((place for stop in self.options.stop if (place := text.find(stop)) >= 0), default=None)


class BaseEngine(ABC):
    """Generates.

    Args:
        model: in eval mode, on this rank's device; of a pipeline, this rank's stage.
        tokenizer: of transformers.
        max_sequence_length: tokens of a prompt and its completion together.
        max_batch_size: requests that run at once; more of them wait.

    Raises:
        GenerationError: the tokenizer has more tokens than the model.
    """

    def __init__(
        self, model: torch.nn.Module, tokenizer: Any, *, max_sequence_length: int, max_batch_size: int
    ) -> None:
        vocabulary: Any = model.vocab_size
        if len(tokenizer) > vocabulary:
            raise GenerationError(
                f"The tokenizer has {len(tokenizer)} tokens and the model {vocabulary}. Name the tokenizer that the "
                "model was trained with."
            )
        self.tokenizer = tokenizer
        self.max_sequence_length = max_sequence_length
        self.max_batch_size = max_batch_size
        self._next = 0
        self._shares = Shares(model.config)

    def submit(self, prompt: Sequence[int], options: SamplingOptions, begins_anew: bool = False) -> Request:
        """Queue a prompt; :meth:`step` works on it.

        Args:
            begins_anew: see :class:`Request`.

        Raises:
            GenerationError: the prompt is empty, too long, or has tokens that the tokenizer does not know.
        """
        self._check(prompt)
        return self._submit(prompt, options, begins_anew)

    @abstractmethod
    def _submit(self, prompt: Sequence[int], options: SamplingOptions, begins_anew: bool = False) -> Request:
        """:meth:`submit` of a prompt that has been checked."""

    def cancel(self, request: Request) -> None:
        """Nobody wants it any more: :meth:`step` does not name it again."""
        if request.finish is None:
            request.finish = "cancelled"

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether any request goes on."""

    @abstractmethod
    def step(self) -> list[Request]:
        """One forward pass of the model; returns the requests that have a new token, or have finished."""

    def generate(self, prompts: Sequence[Sequence[int]], options: SamplingOptions) -> list[Request]:
        """The completions of several prompts, in their order. They may be of any lengths, and more than fit at once.

        Each prompt draws from a seed of its own, ``options.seed`` plus its place.

        Raises:
            GenerationError: a prompt is refused, as :meth:`submit` does; none has been worked on then.
        """
        for prompt in prompts:
            self._check(prompt)
        own = {
            place: self.submit(prompts[place], replace(options, seed=options.seed + place))
            for place in self._shares.own(len(prompts))
        }
        while self._shares.any_busy(self.busy):
            if not self.busy:
                self._submit(*_FILLER)
            self.step()
        found = self._shares.gather({place: replace(request, tokenizer=None) for place, request in own.items()})
        return [replace(request, tokenizer=self.tokenizer) for request in found]

    def _check(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise GenerationError(
                "The prompt is empty; at least one token is needed, such as the begin-of-sequence one."
            )
        if len(prompt) >= self.max_sequence_length:
            raise GenerationError(
                f"The prompt has {len(prompt)} tokens, and prompt and completion together may have "
                f"{self.max_sequence_length}. Shorten it, or allow more (--seq-length)."
            )
        if not 0 <= min(prompt) <= max(prompt) < len(self.tokenizer):
            raise GenerationError(
                f"The prompt has tokens from {min(prompt)} to {max(prompt)}; those of the tokenizer are 0 to "
                f"{len(self.tokenizer) - 1}."
            )

    def _new_request(self, prompt: Sequence[int], options: SamplingOptions, begins_anew: bool) -> Request:
        request = Request(self._next, list(prompt), options, self.tokenizer, begins_anew)
        self._next += 1
        return request

    def _most_tokens(self, request: Request) -> int:
        """That it may get, the one that ends it included."""
        return min(request.options.max_new_tokens, self.max_sequence_length - len(request.prompt))

    def _end(self, options: SamplingOptions) -> int:
        return -1 if options.ignore_eos or self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id
