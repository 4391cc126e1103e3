"""What lm-eval asks for, and what the model is asked for then."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from ascend_patch.evaluation.errors import EvaluationError
from ascend_patch.evaluation.journal import Journal
from ascend_patch.evaluation.lm import MegatronLM


class Letters:
    """A tokenizer: a letter is a token, 1 begins a text, 2 ends it."""

    bos_token_id, eos_token_id = 1, 2

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [1 if letter == "^" else ord(letter) for letter in text]

    def decode(self, token: int) -> str:
        return "^" if token == 1 else chr(token)


class Model:
    """Remembers what it was asked for; a score is the sum of the continuation's tokens."""

    max_length = 12

    def __init__(self) -> None:
        self.asked: list = []

    def score(self, pairs: Sequence, on_scores: Callable) -> None:
        self.asked += pairs
        for place in reversed(range(len(pairs))):
            on_scores([(place, (-float(sum(pairs[place][1])), True))])

    def generate(self, prompts: Sequence, on_texts: Callable) -> None:
        self.asked += prompts
        on_texts([(place, f"text {place}") for place in range(len(prompts))])


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def lm(model: Model, tmp_path: Path) -> Iterator[MegatronLM]:
    with Journal(tmp_path / "journal", {}) as journal:
        yield MegatronLM(model, Letters(), journal)


def requests(*arguments: tuple) -> list[Any]:
    return [Instance("any", {}, one, 0) for one in arguments]


def test_loglikelihood(lm: MegatronLM, model: Model) -> None:
    """In the order of the requests; without a context the begin-of-sequence token is one; it is not there twice."""
    asked = requests(("ab ", "c"), ("", "d"), ("^a", "b"))
    assert lm.loglikelihood(asked) == [(-131.0, True), (-100.0, True), (-98.0, True)]
    assert [tuple(map(list, pair)) for pair in model.asked] == [([1, 97, 98], [32, 99]), ([1], [100]), ([1, 97], [98])]
    assert lm.loglikelihood(asked) == [(-131.0, True), (-100.0, True), (-98.0, True)]
    assert len(model.asked) == 3  # the others were in the journal


def test_rolling(lm: MegatronLM, model: Model) -> None:
    """Each token counts once, however many windows there are."""
    text = "abcdefghijklmnopqrstuvwxyz"
    assert lm.loglikelihood_rolling(requests((text,), ("a",))) == [-sum(map(ord, text)) - 1.0, -98.0]
    assert all(len(context) + len(continuation) <= 13 for context, continuation in model.asked)


def test_generate(lm: MegatronLM, model: Model) -> None:
    """Options in lm-eval's words; a context that is too long loses its beginning; repetitions are drawn anew."""
    sampled = {"until": "\n", "max_gen_toks": 8, "do_sample": True, "temperature": 0.5, "top_p": 0.9}
    asked = requests(("abcdef", {"until": ["x", ""], "max_gen_toks": 9}), ("a", sampled), ("a", sampled))
    assert lm.generate_until(asked) == ["text 0", "text 1", "text 2"]
    (tokens, greedy), (_, one), (_, other) = model.asked
    assert (tokens, greedy.max_new_tokens, greedy.stop, greedy.temperature) == ([100, 101, 102], 9, ("x",), 0.0)
    assert (one.stop, one.temperature, one.top_p) == (("\n",), 0.5, 0.9)
    assert one.seed != other.seed
    model.asked.clear()
    assert lm.generate_until(asked[1:]) == ["text 1", "text 2"]
    assert model.asked == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": [], "num_beams": 4}, "The task wants num_beams for generation, allowed: do_sample, max_gen_toks"),
        (
            {"until": [], "max_gen_toks": 12},
            "The task wants 12 new tokens, and prompt and completion together may have 12",
        ),
    ],
    ids=["beams", "room"],
)
def test_what_cannot_be_generated_is_refused(lm: MegatronLM, options: dict, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        lm.generate_until(requests(("a", options)))
