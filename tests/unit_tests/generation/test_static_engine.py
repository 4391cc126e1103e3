"""The static engine's order of work; what its model computes is compared in tests/system_tests/test_generation.py."""

from types import SimpleNamespace

import pytest
import torch

from ascend_patch.generation import base_engine, engines, ranks
from ascend_patch.generation.beam_search import BeamOptions
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import SamplingOptions
from ascend_patch.generation.static_engine import StaticEngine

VOCABULARY = 8
OPTIONS = SamplingOptions(max_new_tokens=3)


class Tokenizer:
    """Of eight tokens, the last of which ends a text."""

    eos_token_id = VOCABULARY - 1

    def __len__(self) -> int:
        return VOCABULARY


class Counting(StaticEngine):
    """Its model's next token is the last one plus one; ``passes`` has where each forward pass began, and its tokens."""

    def __init__(self, context_parallel_size: int = 1) -> None:
        config = SimpleNamespace(context_parallel_size=context_parallel_size, sequence_parallel=False)
        model = SimpleNamespace(vocab_size=VOCABULARY, config=config)
        super().__init__(model, Tokenizer(), max_sequence_length=6)
        self.passes: list[tuple[int, list[int]]] = []

    def _forward(self, tokens):
        start = self._context.sequence_len_offset
        assert self._context.is_decode_only() == (start > 0)
        self.passes.append((start, list(tokens)))
        self._context.increment_sequence_len_offset(len(tokens))
        return torch.nn.functional.one_hot(torch.tensor(tokens[-1] + 1), VOCABULARY).float()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank, without process groups."""
    monkeypatch.setattr(base_engine, "Shares", lambda config: None)
    monkeypatch.setattr(ranks, "from_last_stage", lambda value: value)


def test_one_after_the_other() -> None:
    engine = Counting()
    first, second, third = (engine.submit(prompt, OPTIONS) for prompt in ([1, 2], [5], [0, 0, 0, 0]))
    while engine.busy:
        engine.step()
    assert engine.passes == [
        (0, [1, 2]), (2, [3]), (3, [4]),
        (0, [5]), (1, [6]),
        (0, [0, 0, 0, 0]), (4, [1]),
    ]  # fmt: skip
    assert (first.tokens, first.finish) == ([3, 4, 5], "length")
    assert (second.tokens, second.finish) == ([6], "stop")
    assert (third.tokens, third.finish) == ([1, 2], "length")  # no room for more
    assert engine.step() == []


def test_cancelled_requests_cost_nothing_more() -> None:
    engine = Counting()
    running, waiting, wanted = (engine.submit([token], OPTIONS) for token in (0, 1, 2))
    assert engine.step() == [running]
    engine.cancel(waiting)
    engine.cancel(running)
    assert engine.step() == [wanted]
    assert engine.passes == [(0, [0]), (0, [2])]
    engine.cancel(wanted)
    assert not engine.busy
    assert {request.finish for request in (running, waiting, wanted)} == {"cancelled"}


def test_context_parallelism_is_refused() -> None:
    with pytest.raises(GenerationError, match="leave --context-parallel-size at 1"):
        Counting(context_parallel_size=2)


def test_beams_are_refused_by_a_release_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    engines.check_beams(BeamOptions(num_beams=3))
    monkeypatch.setattr(engines, "has_dynamic_engine", lambda version: False)
    engines.check_beams(BeamOptions())
    with pytest.raises(GenerationError, match="num_beams is 3, .* Leave --num-beams at 1"):
        engines.check_beams(BeamOptions(num_beams=3))
