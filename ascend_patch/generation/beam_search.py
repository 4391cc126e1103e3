"""Beam search: the most probable completions kept side by side, step by step, as transformers' ``generate`` does it.

What is decided here is decided on the host, from a few candidates a step: the same on every rank that has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import SamplingOptions, penalized

_NOTHING = -1e9
"""The score of a beam that is not there yet."""


@dataclass(frozen=True)
class BeamOptions:
    """How beams are kept and compared; the names are transformers'.

    Raises:
        GenerationError: a value is out of its range.
    """

    num_beams: int = 1
    """Completions that are kept of each prompt; 1 is no beam search."""
    length_penalty: float = 1.0
    """A completion's score is the sum of its log-probabilities over its number of tokens to this power."""
    early_stopping: bool = False
    """End with ``num_beams`` complete ones; else, when those that go on do not look better than the worst of them."""

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise GenerationError(f"num_beams is {self.num_beams}, allowed: at least 1.")

    def check(self, options: SamplingOptions) -> None:
        """Whether tokens that are chosen with ``options`` can be searched for.

        Raises:
            GenerationError: they are drawn, or ``options`` asks for what completions of a search do not have.
        """
        for name, allowed, holds in (
            ("temperature", "0, as nothing is drawn", options.temperature == 0),
            ("stop", "none", not options.stop),
            ("logprobs", "none", options.logprobs is None),
        ):
            if not holds:
                raise GenerationError(
                    f"{name} is {getattr(options, name)!r}; allowed with num_beams {self.num_beams}: {allowed}. "
                    "num_beams 1 is no beam search."
                )


@dataclass(frozen=True)
class Candidate:
    """A beam with one more token."""

    score: float
    """Sum of the natural logarithms of its tokens' probabilities."""
    beam: int
    """Which beam it goes on."""
    token: int


@dataclass(frozen=True)
class Hypothesis:
    """A complete one."""

    score: float
    """See :attr:`BeamOptions.length_penalty`."""
    tokens: list[int]
    """Without the one that ended it."""
    ended: bool
    """By the end-of-sequence token; otherwise it was cut off."""


class Beams:
    """The beams of one prompt.

    Args:
        most_tokens: of a completion.
        end: the end-of-sequence token, None where no token ends a completion.
    """

    def __init__(self, prompt: Sequence[int], options: BeamOptions, most_tokens: int, end: int | None) -> None:
        self.finished = False
        """Whether :attr:`best` is the result."""
        self._prompt = prompt
        self._options = options
        self._most = most_tokens
        self._end = end
        self._tokens: list[list[int]] = [[] for _ in range(options.num_beams)]
        # All beams are the prompt at first: one of them goes on, or each candidate would be there several times.
        self._scores = [0.0] + [_NOTHING] * (options.num_beams - 1)
        self._complete: list[Hypothesis] = []

    @property
    def best(self) -> Hypothesis:
        """The best complete one."""
        return self._complete[0]

    def candidates(self, logits: Tensor, repetition_penalty: float) -> list[Candidate]:
        """The best continuations, the best first: twice as many as beams, since half of them may end.

        Args:
            logits: ``[beams, vocabulary]``, floating point.
        """
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        if repetition_penalty != 1:
            # Of log-probabilities, not of logits: so it is in transformers' search.
            histories = ([*self._prompt, *tokens] for tokens in self._tokens)
            pairs = zip(logprobs, histories, strict=True)
            logprobs = torch.stack([penalized(row, history, repetition_penalty) for row, history in pairs])
        scores = logprobs + torch.tensor(self._scores, device=logprobs.device).unsqueeze(1)
        values, places = scores.flatten().topk(2 * len(self._tokens))
        return [
            Candidate(value, *divmod(place, scores.shape[1]))
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
        ]

    def advance(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Take a step; returns what each beam has become.

        A beam that goes on stays in its place, if with several tokens, one of them.

        Args:
            candidates: as :meth:`candidates` returns them.
        """
        length = len(self._tokens[0]) + 1
        ended = [candidate.token == self._end for candidate in candidates]
        last = length == self._most
        count = len(self._tokens)
        # Only what is among the best may be complete; the others are there to go on.
        for candidate, at_end in list(zip(candidates, ended, strict=True))[:count]:
            if at_end or last:
                self._complete_one(candidate, at_end, length)
        running = [candidate for candidate, at_end in zip(candidates, ended, strict=True) if not at_end][:count]
        running = _in_place(running)
        self._tokens = [[*self._tokens[candidate.beam], candidate.token] for candidate in running]
        self._scores = [candidate.score for candidate in running]
        self.finished = last or self._cannot_improve(length)
        return running

    def _complete_one(self, candidate: Candidate, ended: bool, length: int) -> None:
        tokens = self._tokens[candidate.beam] if ended else [*self._tokens[candidate.beam], candidate.token]
        score = candidate.score / length**self._options.length_penalty
        self._complete.append(Hypothesis(score, tokens, ended))
        self._complete.sort(key=lambda hypothesis: hypothesis.score, reverse=True)
        del self._complete[len(self._tokens) :]

    def _cannot_improve(self, length: int) -> bool:
        if len(self._complete) < len(self._tokens):
            return False
        reachable = max(self._scores) / length**self._options.length_penalty
        return self._options.early_stopping or reachable <= self._complete[-1].score


def _in_place(candidates: Sequence[Candidate]) -> list[Candidate]:
    """``candidates`` in an order in which each beam that goes on has one in its own place."""
    places: dict[int, Candidate] = {}
    moved = []
    for candidate in candidates:
        if candidate.beam in places:
            moved.append(candidate)
        else:
            places[candidate.beam] = candidate
    return [places[place] if place in places else moved.pop(0) for place in range(len(candidates))]
