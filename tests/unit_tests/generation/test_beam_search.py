"""Beam search: the sequences of transformers' ``generate`` on a random model, and what cannot be searched for."""

from collections.abc import Iterator

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from ascend_patch.generation.beam_search import BeamOptions, Beams, Hypothesis
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import SamplingOptions

END = 2
VOCABULARY = 23


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A model as small as this one is not made faster by more; on a busy machine they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """A random one, which ends now and then, sooner or later."""
    print(f"torch.manual_seed({torch.seed()})")
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = MistralForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.5)
        model.lm_head.weight[END] *= 3
    return model


def search(
    model: torch.nn.Module, prompt: list[int], options: BeamOptions, most: int, end: int | None, penalty: float = 1.0
) -> Hypothesis:
    beams = Beams(prompt, options, most, end)
    rows = [prompt] * options.num_beams
    while not beams.finished:
        with torch.no_grad():
            logits = model(torch.tensor(rows)).logits[:, -1]
        running = beams.advance(beams.candidates(logits, penalty))
        rows = [[*rows[candidate.beam], candidate.token] for candidate in running]
    return beams.best


@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_transformers_sequences(model, num_beams, length_penalty, early_stopping):
    options = BeamOptions(num_beams, length_penalty, early_stopping)
    ended = 0
    for length in (1, 4, 9):
        for most in (1, 2, 12):
            prompt = torch.randint(3, VOCABULARY, (length,)).tolist()
            found = model.generate(
                torch.tensor([prompt]),
                max_new_tokens=most,
                do_sample=False,
                num_beams=num_beams,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                eos_token_id=END,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            )
            expected = found.sequences[0, length:].tolist()
            best = search(model, prompt, options, most, END)
            assert [*best.tokens, *([END] if best.ended else [])] == expected
            assert best.score == pytest.approx(float(found.sequences_scores[0]), abs=1e-4)
            ended += best.ended
    print(f"{ended} of 9 ended by themselves")


def test_no_token_ends_and_repetition_is_penalized(model):
    for penalty in (1.0, 1.4):
        prompt = torch.randint(3, VOCABULARY, (5,)).tolist()
        found = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=12,
            do_sample=False,
            num_beams=4,
            repetition_penalty=penalty,
            eos_token_id=None,
            pad_token_id=0,
        )
        best = search(model, prompt, BeamOptions(4), 12, None, penalty)
        assert (best.tokens, best.ended) == (found[0, 5:].tolist(), False)


def test_a_beam_that_goes_on_stays_in_its_place(model):
    """What moves is copied, and that takes time."""
    prompt, beams = [5, 4, 3], Beams([5, 4, 3], BeamOptions(4), 8, END)
    rows = [prompt] * 4
    while not beams.finished:
        with torch.no_grad():
            running = beams.advance(beams.candidates(model(torch.tensor(rows)).logits[:, -1], 1.0))
        for parent in {candidate.beam for candidate in running}:
            assert running[parent].beam == parent
        rows = [[*rows[candidate.beam], candidate.token] for candidate in running]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": 0.5}, "temperature is 0.5; allowed with num_beams 3: 0"),
        ({"stop": ("x",)}, r"stop is \('x',\); allowed with num_beams 3: none"),
        ({"logprobs": 2}, "logprobs is 2; allowed with num_beams 3: none"),
    ],
)
def test_what_cannot_be_searched_for(options, told):
    with pytest.raises(GenerationError, match=told):
        BeamOptions(3).check(SamplingOptions(**options))


def test_no_beams():
    with pytest.raises(GenerationError, match="num_beams is 0, allowed: at least 1"):
        BeamOptions(0)
