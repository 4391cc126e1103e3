"""The model on all ranks of a job: rank 0 evaluates, the others compute what it asks for.

lm-eval runs on rank 0 only. Nothing has to be the same on all ranks then, and only one process imports it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch

from ascend_patch.generation import ranks
from ascend_patch.generation.base_engine import BaseEngine, Request
from ascend_patch.generation.sampling import SamplingOptions
from ascend_patch.generation.scoring import Pair, Score, Scorer

Prompt = tuple[Sequence[int], SamplingOptions]
"""Token ids, and how they are gone on with."""


class Workers:
    """Scores and generates on all ranks at once; a context manager, at whose end the other ranks end too.

    On rank 0 :meth:`score` and :meth:`generate` are called, on all others :meth:`follow`, which returns at the end.

    Args:
        build_engine: makes the engine when it is needed; most tasks do not generate.
    """

    def __init__(self, scorer: Scorer, build_engine: Callable[[], BaseEngine]) -> None:
        self._scorer = scorer
        self._build_engine = build_engine
        self._engine: BaseEngine | None = None
        # Rank 0 prepares the prompts of a whole data set first.
        self._group = ranks.patient_group()
        self._together = True

    @property
    def max_length(self) -> int:
        """Tokens of an input."""
        return self._scorer.max_length

    def score(self, pairs: Sequence[Pair], on_scores: Callable[[list[tuple[int, Score]]], object]) -> None:
        """See :meth:`Scorer.score`; the results go to ``on_scores``."""
        self._all("score", pairs, on_scores)

    def generate(self, prompts: Sequence[Prompt], on_texts: Callable[[list[tuple[int, str]]], object]) -> None:
        """The completions go to ``on_texts``, with their places in ``prompts``, when they are ready."""
        self._all("generate", prompts, on_texts)

    def follow(self) -> None:
        """Compute what rank 0 asks for, until it needs no more."""
        while (asked := self._exchange(None)) is not None:
            self._compute(*asked, lambda _: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Ranks that failed together do not listen any more.
        if torch.distributed.get_rank() == 0 and self._together:
            self._exchange(None)

    def _all(self, what: str, requests: Sequence[Any], on_results: Callable[[Any], object]) -> None:
        if not requests:
            return
        self._together = False
        self._exchange((what, requests))
        self._compute(what, requests, on_results)
        self._together = True

    def _exchange(self, asked: tuple[str, Sequence[Any]] | None) -> tuple[str, Sequence[Any]] | None:
        return ranks.broadcast(asked, group=self._group, device=torch.device("cpu"))

    def _compute(self, what: str, requests: Sequence[Any], on_results: Callable[[Any], object]) -> None:
        if what == "score":
            self._scorer.score(requests, on_results)
        else:
            self._engine = self._engine or self._build_engine()
            complete(self._engine, requests, on_results)


def complete(
    engine: BaseEngine, prompts: Sequence[Prompt], on_texts: Callable[[list[tuple[int, str]]], object]
) -> None:
    """Generate for all prompts, each with its own options; texts go to ``on_texts`` when they are ready."""
    waiting = deque(enumerate(prompts))
    running: dict[int, Request] = {}
    while waiting or running:
        while waiting and len(running) < 2 * engine.max_batch_size:
            place, (tokens, options) = waiting.popleft()
            running[place] = engine.submit(tokens, options)
        engine.step()
        ready = [(place, request.text) for place, request in running.items() if request.finish is not None]
        for place, _ in ready:
            del running[place]
        if ready:
            on_texts(ready)
