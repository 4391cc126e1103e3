"""The next token: from logits to a choice, as transformers' processors of the same names define it.

What is drawn depends on the request's seed and on how many tokens it has, and on nothing else: not on the other
requests of a batch, not on the rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ascend_patch.generation.errors import GenerationError


@dataclass(frozen=True)
class SamplingOptions:
    """How a request's tokens are chosen.

    Raises:
        GenerationError: a value is out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int = 0
    """Sample from this many most probable tokens; 0: from all."""
    top_p: float = 1.0
    """Sample from the fewest most probable tokens that have this probability together."""
    repetition_penalty: float = 1.0
    """Logits of tokens that are there already are divided by it, or multiplied where they are negative."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end the generation; they are not part of the result."""
    ignore_eos: bool = False
    """Go on after the end-of-sequence token: for measurements."""
    logprobs: int | None = None
    """None: none; n: the log-probability of each chosen token, and of the n most probable ones."""

    def __post_init__(self) -> None:
        for name, allowed, holds in (
            ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
            ("temperature", "at least 0", self.temperature >= 0),
            ("top_k", "at least 0, which is no limit", self.top_k >= 0),
            ("top_p", "above 0, up to 1, which is no limit", 0 < self.top_p <= 1),
            ("repetition_penalty", "above 0; 1 is none", self.repetition_penalty > 0),
            ("logprobs", "0 to 100", self.logprobs is None or 0 <= self.logprobs <= 100),
            ("stop", "texts that are not empty", all(self.stop)),
        ):
            if not holds:
                raise GenerationError(f"{name} is {getattr(self, name)!r}, allowed: {allowed}.")

    @property
    def plain(self) -> bool:
        """Whether the token is the one with the largest logit, and nothing else is asked for."""
        return self.temperature == 0 and self.repetition_penalty == 1 and self.logprobs is None


@dataclass(frozen=True)
class Choice:
    """A chosen token."""

    token: int
    logprob: float | None = None
    """Natural logarithm of its probability, before temperature and filters; None where it was not asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens with their log-probabilities, in this order."""


def choose(logits: Tensor, options: SamplingOptions, history: Sequence[int], position: int) -> Choice:
    """The next token.

    Args:
        logits: ``[vocabulary]``, floating point, of one request.
        history: the request's tokens, prompt and generated.
        position: how many tokens have been generated.
    """
    logits = logits.float()
    scores = penalized(logits, history, options.repetition_penalty)
    if options.temperature == 0:
        token = int(scores.argmax())
    else:
        scores = filtered(scores / options.temperature, options.top_k, options.top_p)
        token = int((scores + _noise(scores, options.seed, position)).argmax())
    if options.logprobs is None:
        return Choice(token)
    logprobs = torch.log_softmax(logits, dim=-1)
    values, tokens = logprobs.topk(min(options.logprobs, len(logprobs)))
    top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return Choice(token, float(logprobs[token]), top)


def penalized(logits: Tensor, history: Sequence[int], penalty: float) -> Tensor:
    """``logits [vocabulary]`` with those of the tokens in ``history`` divided by ``penalty``, multiplied if negative.

    Keskar et al. 2019, section 4.1, as transformers has it.
    """
    if penalty == 1:
        return logits
    seen = torch.tensor(sorted(set(history)), device=logits.device)
    found = logits[seen]
    return logits.index_copy(0, seen, torch.where(found < 0, found * penalty, found / penalty))


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """``logits [vocabulary]`` with -inf for the tokens that are not to be drawn; at least one is left.

    Top-k (Fan et al. 2018), then the nucleus (Holtzman et al. 2020) of what that left.
    """
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    if top_p < 1:
        ascending, order = logits.sort()
        # Unlikely tokens that have 1 - top_p together are left out; the most likely one never is.
        outside = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        outside[-1] = False
        logits = logits.index_fill(0, order[outside], -torch.inf)
    return logits


def _noise(logits: Tensor, seed: int, position: int) -> Tensor:
    """Gumbel noise ``[vocabulary]``: the largest of logits plus noise is a draw from their softmax (Gumbel 1954).

    It is drawn on the host, so that all devices and ranks draw the same.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + position) % (1 << 63))
    exponential = torch.empty(len(logits)).exponential_(generator=generator)
    return -exponential.log().to(logits.device)
