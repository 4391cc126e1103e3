"""Sampling: processors against those of transformers, draws against the probabilities that they are meant to have."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import Choice, SamplingOptions, choose, filtered, penalized

VOCABULARY = 40


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(VOCABULARY) * 3


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.7])
def test_repetition_penalty(logits, penalty):
    history = torch.randint(0, VOCABULARY, (15,))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(history.unsqueeze(0), logits.unsqueeze(0).clone())
    torch.testing.assert_close(penalized(logits, history.tolist(), penalty), expected.squeeze(0), rtol=0, atol=0)


@pytest.mark.parametrize("top_k", [0, 1, 7, VOCABULARY, VOCABULARY + 5])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
def test_filters(logits, top_k, top_p):
    expected = logits.unsqueeze(0)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    torch.testing.assert_close(filtered(logits, top_k, top_p), expected.squeeze(0), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1.0}, {"temperature": 0.6, "top_k": 8}, {"temperature": 1.5, "top_p": 0.8, "top_k": 20}],
    ids=str,
)
def test_draws_have_their_probabilities(logits, options):
    """Chi-squared over many seeds; five standard deviations."""
    draws = 20_000
    limits = {"top_k": 0, "top_p": 1.0} | {name: value for name, value in options.items() if name != "temperature"}
    probabilities = filtered(logits / options["temperature"], **limits).softmax(-1).double()
    tokens = [choose(logits, SamplingOptions(seed=seed, **options), [], 3).token for seed in range(draws)]
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCABULARY).double()
    assert not counts[probabilities == 0].any()
    likely = probabilities * draws >= 10
    expected = probabilities[likely] * draws
    statistic = float(((counts[likely] - expected) ** 2 / expected).sum())
    degrees = int(likely.sum())
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


def test_a_draw_depends_on_seed_and_position_only(logits):
    # Warm enough that no token is nearly certain.
    options = SamplingOptions(temperature=3.0, seed=5)
    tokens = [choose(logits, options, [1, 2], position).token for position in range(30)]
    assert tokens == [choose(logits.double(), options, [9], position).token for position in range(30)]
    assert len(set(tokens)) > 3
    other = SamplingOptions(temperature=3.0, seed=6)
    assert tokens != [choose(logits, other, [1, 2], position).token for position in range(30)]


def test_greedy_takes_the_largest_and_repetition_counts(logits):
    best = int(logits.abs().argmax())
    logits[best] = logits.abs().max() + 1
    assert choose(logits, SamplingOptions(), [], 0) == Choice(best)
    assert choose(logits, SamplingOptions(repetition_penalty=100.0), [best], 0).token != best


def test_logprobs_are_those_of_the_model(logits):
    expected = logits.log_softmax(-1)
    choice = choose(logits, SamplingOptions(temperature=2.0, top_k=3, repetition_penalty=2.0, logprobs=4), [1], 0)
    assert choice.logprob == pytest.approx(float(expected[choice.token]))
    assert [token for token, _ in choice.top] == expected.topk(4).indices.tolist()
    assert [value for _, value in choice.top] == pytest.approx(expected.topk(4).values.tolist())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("logprobs", 101),
        ("stop", ("",)),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(GenerationError, match=f"^{name} is "):
        SamplingOptions(**{name: value})
