"""Log-likelihoods of continuations: those of transformers, in every layout."""

from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint.convert import Options, convert
from tests.system_tests import hugging_face
from tests.system_tests.generation import SHAPE, flags, transformers_greedy
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import EP2, ONE, PP2, TP2_SP
from tests.system_tests.scoring import score, transformers_score

pytestmark = pytest.mark.xdist_group("logits")

TOLERANCE = 1e-3


def random_tokens(length: int) -> list[int]:
    return torch.randint(3, hugging_face.VOCABULARY, (length,)).tolist()


class Model:
    """A model of transformers and of Megatron, and pairs with the scores that transformers gives them."""

    def __init__(self, folder: Path) -> None:
        hf = hugging_face.save(hugging_face.random_model(**SHAPE), folder / "hf")
        checkpoint = convert(Options(hf, folder / "megatron", make_vocab_size_divisible_by=128))
        self.flags = flags(SHAPE, checkpoint, hf)
        model = hugging_face.load(hf)
        questions = [random_tokens(1 + 9 * i % 50) for i in range(11)]
        self.pairs = [(question, [answer]) for question in questions for answer in (5, 6, 7, 8)]  # shared inputs
        self.pairs += [(random_tokens(1 + 5 * i), random_tokens(1 + 3 * i)) for i in range(6)]
        self.pairs += [(question, transformers_greedy(model, question, 3)) for question in questions[:3]]
        self.pairs += [(random_tokens(200), random_tokens(20)), (random_tokens(3), random_tokens(128))]  # cut
        self.expected = [transformers_score(model, *pair) for pair in self.pairs]

    def check(self, found: list[tuple[float, bool]]) -> None:
        """The same sums of log-probabilities, and the same answers to whether they are greedy."""
        worst = max(abs(one[0] - other[0]) for one, other in zip(found, self.expected, strict=True))
        print(f"largest difference of {len(found)} log-likelihoods: {worst:.2e}")
        assert worst < TOLERANCE
        assert [greedy for _, greedy in found] == [greedy for _, greedy in self.expected]
        assert any(greedy for _, greedy in found)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("scoring"))


@pytest.mark.parametrize(
    ("layout", "processes", "batch_size"),
    [
        (ONE, 1, 8),
        (EP2, 2, 3),
        (PP2, 2, 2),
        (TP2_SP | EP2, 4, 4),
        pytest.param(TP2_SP | PP2 | EP2, 8, 8, marks=pytest.mark.slow),
    ],
    ids=["one", "ep2", "pp2", "tp2-ep2", "tp2-pp2-ep2"],
)
def test_scores_are_those_of_transformers(
    mixtral: Model, server: Server, layout: dict, processes: int, batch_size: int
) -> None:
    """Inputs of unequal lengths, some of them shared, some too long; float32."""
    mixtral.check(score(server, mixtral.pairs, mixtral.flags | layout, processes, batch_size=batch_size))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([1], list(range(3, 132))), "continuation of 129 tokens, and an input may have 128"),
        (([], [3]), "Pair 0 has 0 tokens of context"),
        (([1], [hugging_face.VOCABULARY]), f"those of the tokenizer are 0 to {hugging_face.VOCABULARY - 1}"),
    ],
    ids=["too-long", "empty", "unknown"],
)
def test_what_cannot_be_scored_is_refused(mixtral: Model, server: Server, pair: tuple, message: str) -> None:
    """One paragraph, instead of a wrong score."""
    with pytest.raises(AssertionError, match=message):
        score(server, [pair], mixtral.flags)
