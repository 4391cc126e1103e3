"""Generation on upstream's engine: the tokens of transformers, in every layout and batch."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ascend_patch.checkpoint.convert import Options, convert
from ascend_patch.checkpoint.keys import Build
from tests.system_tests import hugging_face, releases
from tests.system_tests.generation import SHAPE, check_same, flags, generate, generate_counting, transformers_greedy
from tests.system_tests.launcher import Run, train
from tests.system_tests.megatron_server import Server
from tests.system_tests.mixtral import EP2, ONE, PP2, TP2_SP

pytestmark = pytest.mark.xdist_group("logits")

TOKENS = 64
PROMPTS = 20
VOCABULARY = hugging_face.VOCABULARY
LOCAL = {"transformer_impl": "local"}
TP2 = {"tensor_model_parallel_size": 2}


class Model:
    """A model of transformers and of Megatron, prompts of unequal lengths, and what transformers makes of them."""

    def __init__(self, shape: dict, folder: Path) -> None:
        self.shape = shape
        self.folder = hugging_face.save(hugging_face.random_model(**shape), folder / "hf")
        self.checkpoint = convert(Options(self.folder, folder / "megatron", make_vocab_size_divisible_by=128))
        self.model = hugging_face.load(self.folder)
        self.prompts = [torch.randint(3, VOCABULARY, (1 + 7 * i % 40,)).tolist() for i in range(PROMPTS)]
        self.expected = [transformers_greedy(self.model, prompt, TOKENS) for prompt in self.prompts]
        self.flags = flags(shape, self.checkpoint, self.folder)

    def check(self, requests: list[dict], of: slice = slice(None)) -> None:
        """These are the greedy completions of all prompts, or of some."""
        for prompt, request, expected in zip(self.prompts[of], requests, self.expected[of], strict=True):
            assert request["finish"] == "length"
            check_same(self.model, prompt, request["tokens"], expected)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(SHAPE, tmp_path_factory.mktemp("mixtral"))


GREEDY = {"max_new_tokens": TOKENS, "ignore_eos": True}


@pytest.mark.parametrize(
    ("layout", "processes"),
    [
        (ONE, 1),
        (EP2, 2),
        (PP2, 2),
        pytest.param(TP2_SP | EP2, 4, marks=pytest.mark.slow),
        pytest.param(TP2_SP | PP2 | EP2, 8, marks=pytest.mark.slow),
    ],
    ids=["one", "ep2", "pp2", "tp2-ep2", "tp2-pp2-ep2"],
)
def test_greedy_tokens_are_those_of_transformers(mixtral: Model, server: Server, layout: dict, processes: int) -> None:
    """Twenty prompts of unequal lengths in batches of eight, 64 tokens each."""
    batch = {"prompts": mixtral.prompts, "options": GREEDY}
    (requests,) = generate(server, [batch], mixtral.flags | layout, processes)
    mixtral.check(requests)


@pytest.mark.parametrize(
    ("layout", "processes"),
    [
        (ONE, 1),
        pytest.param(EP2, 2, marks=pytest.mark.slow),
        pytest.param(PP2, 2, marks=pytest.mark.slow),
        pytest.param(TP2_SP, 2, marks=pytest.mark.slow),
        pytest.param(TP2_SP | EP2, 4, marks=pytest.mark.slow),
    ],
    ids=["one", "ep2", "pp2", "tp2", "tp2-ep2"],
)
def test_the_static_engine(mixtral: Model, server: Server, layout: dict, processes: int) -> None:
    """Greedy tokens are those of transformers; what is drawn, and its log-probabilities, those of the dynamic one."""
    greedy = {"prompts": mixtral.prompts, "options": GREEDY}
    drawn = {"prompts": mixtral.prompts[:7], "options": GREEDY | {"temperature": 0.8, "seed": 5, "logprobs": 1}}
    requests, draws = generate(server, [greedy, drawn], mixtral.flags | layout, processes, static=True)
    mixtral.check(requests)
    (expected,) = generate(server, [drawn], mixtral.flags)
    same = [(one, other) for one, other in zip(draws, expected, strict=True) if one["tokens"] == other["tokens"]]
    assert len(same) >= len(draws) - 1  # see test_batches_do_not_matter
    for one, other in same:
        logprobs = [[choice["logprob"] for choice in each["choices"]] for each in (one, other)]
        assert len(logprobs[0]) == TOKENS and logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("release", [one for one in releases.TRAINABLE if one != releases.INSTALLED])
def test_every_release(mixtral: Model, tmp_path: Path, release: str) -> None:
    with Server(tmp_path, releases.folder(release)) as server:
        mixtral.check(generate(server, [{"prompts": mixtral.prompts, "options": GREEDY}], mixtral.flags)[0])


def test_a_sliding_window(server: Server, tmp_path: Path) -> None:
    """Mistral v0.1's, shorter than the completions, by both engines."""
    mistral = Model(hugging_face.MISTRAL_V01 | {"max_position_embeddings": 256, "num_hidden_layers": 2}, tmp_path)
    for static in (False, True):
        batch = {"prompts": mistral.prompts, "options": GREEDY}
        mistral.check(generate(server, [batch], mistral.flags, static=static)[0])


@pytest.mark.parametrize(
    ("layout", "processes"),
    [(ONE, 1), pytest.param(LOCAL, 1, marks=pytest.mark.slow), (TP2, 2)],
    ids=["one", "local", "tp2"],
)
def test_the_short_way_is_the_long_one(
    mixtral: Model, server: Server, layout: dict, processes: int, tmp_path: Path
) -> None:
    """Decoded by whole layers and without what training needs, greedy tokens have the same log-probabilities."""
    options = mixtral.flags | layout
    if layout is LOCAL:
        build = Build(LOCAL["transformer_impl"])
        conversion = Options(mixtral.folder, tmp_path / "local", make_vocab_size_divisible_by=128, build=build)
        options["load"] = convert(conversion)
    batch = {"prompts": mixtral.prompts[:8], "options": {"max_new_tokens": 24, "ignore_eos": True, "logprobs": 0}}
    short, whole = (generate(server, [batch], options, processes, long_way=long_way)[0] for long_way in (False, True))
    for one, other in zip(short, whole, strict=True):
        assert one["tokens"] == other["tokens"]
        logprobs = [[choice["logprob"] for choice in each["choices"]] for each in (one, other)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-6)


def test_packed_weights_choose_the_same_tokens(mixtral: Model, server: Server) -> None:
    """In bfloat16, with the products of the whole layers to the bit: the short way differs in nothing else."""
    batch = {"prompts": mixtral.prompts[:4], "options": {"max_new_tokens": 8, "ignore_eos": True, "logprobs": 0}}
    options = mixtral.flags | {"bf16": True}
    short, whole = (generate(server, [batch], options, long_way=long_way)[0] for long_way in (False, True))
    for one, other in zip(short, whole, strict=True):
        first, expected = (each["choices"][0]["logprob"] for each in (one, other))
        assert first == pytest.approx(expected, abs=0.05)
    assert sum(one["tokens"] == other["tokens"] for one, other in zip(short, whole, strict=True)) >= 3


def test_batches_do_not_matter(mixtral: Model, server: Server) -> None:
    """One at a time, all at once, sampled: a request gets what it gets alone."""
    options = {"max_new_tokens": 20, "temperature": 0.9, "top_p": 0.9, "ignore_eos": True}
    alone = [
        {"prompts": [prompt], "options": options | {"seed": 7 + place}} for place, prompt in enumerate(mixtral.prompts)
    ]
    together, *singles = generate(
        server,
        [{"prompts": mixtral.prompts, "options": options | {"seed": 7}}, *alone],
        mixtral.flags,
        max_batch_size=PROMPTS,
    )
    same = sum(one["tokens"] == single["tokens"] for one, (single,) in zip(together, singles, strict=True))
    assert same >= PROMPTS - 1  # a draw on the edge between two tokens may fall either way
    assert len({tuple(one["tokens"]) for one in together}) == PROMPTS


def test_repetition_penalty_and_logprobs(mixtral: Model, server: Server) -> None:
    """Those of transformers; over two stages, of which the first gets the log-probabilities from the last."""
    prompts = mixtral.prompts[:4]
    penalty = {"max_new_tokens": 24, "repetition_penalty": 1.5, "ignore_eos": True, "logprobs": 2}
    (penalized,) = generate(server, [{"prompts": prompts, "options": penalty}], mixtral.flags | PP2, 2)
    for prompt, request in zip(prompts, penalized, strict=True):
        expected = transformers_greedy(mixtral.model, prompt, 24, repetition_penalty=1.5)
        assert request["tokens"] == expected
        with torch.no_grad():
            logprobs = mixtral.model(torch.tensor([prompt + expected])).logits[0].log_softmax(-1)
        wanted = [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(expected)]
        assert [choice["logprob"] for choice in request["choices"]] == pytest.approx(wanted, abs=1e-4)
        for i, choice in enumerate(request["choices"]):
            assert [token for token, _ in choice["top"]] == logprobs[len(prompt) - 1 + i].topk(2).indices.tolist()


@pytest.mark.parametrize(
    ("layout", "processes", "size"),
    [
        (EP2, 2, 2),
        (ONE, 2, 2),
        pytest.param(EP2 | {"moe_token_dispatcher_type": "allgather"}, 2, 1, marks=pytest.mark.slow),
        pytest.param(PP2 | EP2, 4, 2, marks=pytest.mark.slow),
        pytest.param(TP2_SP | EP2, 4, 2, marks=pytest.mark.slow),
    ],
    ids=["ep2", "dp2", "ep2-allgather", "pp2-ep2", "tp2-ep2"],
)
def test_data_parallel_ranks_share_the_prompts(
    mixtral: Model, server: Server, layout: dict, processes: int, size: int
) -> None:
    """Also where some have none, or end before the others; what is drawn is what one rank draws."""
    greedy = {"prompts": mixtral.prompts[:5], "options": GREEDY}
    one = {"prompts": mixtral.prompts[3:4], "options": GREEDY}
    drawn = {"prompts": mixtral.prompts[:7], "options": GREEDY | {"temperature": 0.8, "seed": 5}}
    batches = [greedy, one, drawn]
    (first, single, draws), computed = generate_counting(server, batches, mixtral.flags | layout, processes)
    mixtral.check(first, slice(5))
    mixtral.check(single, slice(3, 4))
    ((expected,), ((alone,),)) = generate_counting(server, [drawn], mixtral.flags)
    same = sum(one["tokens"] == other["tokens"] for one, other in zip(draws, expected, strict=True))
    assert same >= len(draws) - 1  # see test_batches_do_not_matter
    if size == 1:
        assert all(counts[2] == alone for counts in computed)
    else:
        assert len({tuple(counts) for counts in computed}) == size
        assert all(counts[2] < 0.7 * alone for counts in computed)


def test_what_is_in_the_cache_is_not_computed_again(server: Server, tmp_path: Path) -> None:
    """As in a conversation: a prompt, and one that goes on where the first has been answered."""
    shape = SHAPE | {"max_position_embeddings": 1024}
    folder = hugging_face.save(hugging_face.random_model(**shape), tmp_path / "hf")
    checkpoint = convert(Options(folder, tmp_path / "megatron", make_vocab_size_divisible_by=128))
    options = {"max_new_tokens": 8, "ignore_eos": True}
    prompt = torch.randint(3, VOCABULARY, (700,)).tolist()
    turns = [[prompt[:550]], [prompt[:690]], [prompt[:512]], [prompt[5:600]], [prompt]]
    # Then more than there is room for, those that end together, and the first again.
    turns += [[prompt[7:], prompt[9:]], [prompt[11:], prompt[13:]], [prompt[11:], prompt[11:690]], [prompt]]
    batches = [{"prompts": prompts, "options": options} for prompts in turns]
    job = (batches, flags(shape, checkpoint, folder, seq_length=1024))
    sizes = {"max_sequence_length": 800, "max_batch_size": 2}
    cached, (counts,) = generate_counting(server, *job, **sizes)
    plain, (all_counts,) = generate_counting(server, *job, **sizes, prefix_caching=False)
    model = hugging_face.load(folder)
    for prompts, ones, others in zip(turns, cached, plain, strict=True):
        for turn, one, other in zip(prompts, ones, others, strict=True):
            expected = transformers_greedy(model, turn, 8)
            check_same(model, turn, one["tokens"], expected)
            check_same(model, turn, other["tokens"], expected)
    assert all_counts == [sum(len(turn) + 7 for turn in prompts) for prompts in turns]
    # Whole blocks of 256 tokens; at least two tokens of a prompt are computed.
    saved = [all - some for all, some in zip(all_counts, counts, strict=True)]
    assert saved == [0, 512, 256, 0, 512, 0, 0, 1024, 0]


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_stops_at_a_text(mixtral: Model, server: Server, static: bool) -> None:
    """It ends where the text is complete, and the text is not part of it; the others of the batch go on."""
    batch = {"prompts": mixtral.prompts[:6], "options": {"max_new_tokens": 24, "ignore_eos": True}}
    ((first, *others),) = generate(server, [batch], mixtral.flags, static=static)
    stop = first["text"][len(first["text"]) // 2 :][:3]
    batch["options"]["stop"] = [stop]
    ((stopped, *rest),) = generate(server, [batch], mixtral.flags, static=static)
    assert (stopped["finish"], stopped["text"]) == ("stop", first["text"].split(stop)[0])
    for one, other in zip(rest, others, strict=True):
        assert one["text"] == other["text"].split(stop)[0]


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_stops_at_the_end_of_sequence(mixtral: Model, server: Server, static: bool) -> None:
    """The token itself is not part of the completion."""
    batch = {"prompts": mixtral.prompts, "options": {"max_new_tokens": TOKENS}}
    (requests,) = generate(server, [batch], mixtral.flags, static=static)
    ended = 0
    for request, expected in zip(requests, mixtral.expected, strict=True):
        if 2 in expected:
            ended += 1
            assert request["finish"] == "stop"
            assert request["tokens"] == expected[: expected.index(2)]
        else:
            assert (request["finish"], request["tokens"]) == ("length", expected)
    print(f"{ended} of {len(requests)} ended by themselves")


class OnNpu:
    """Runs a job on the simulated NPU as :class:`Server` does on the host, and keeps the report of its operators."""

    def __init__(self, report: Path) -> None:
        self.report = report

    def run(self, script: Path, arguments: Sequence[object], processes: int) -> Run:
        """See :meth:`Server.run`."""
        variables = {"ASCEND_PATCH_DEVICE": "npu", "ASCEND_PATCH_REPORT": str(self.report)}
        return train([*map(str, arguments)], processes=processes, script=script, variables=variables)


@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
def test_on_the_npu(tmp_path: Path) -> None:
    """The fused operators take every call, and the log-probabilities are those of transformers, up to bf16.

    A dense model with a sliding window: the router of another might send a token elsewhere for a rounding.
    """
    shape = hugging_face.MISTRAL_V01 | {
        "sliding_window": 40,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "num_hidden_layers": 2,
    }
    folder = hugging_face.save(hugging_face.random_model(**shape), tmp_path / "hf", torch.bfloat16)
    checkpoint = convert(Options(folder, tmp_path / "megatron", make_vocab_size_divisible_by=128))
    prompts = [torch.randint(3, VOCABULARY, (length,)).tolist() for length in (1, 30, 9, 150)]
    batch = {"prompts": prompts, "options": {"max_new_tokens": 12, "ignore_eos": True, "logprobs": 0}}
    search = {"prompts": prompts, "options": {"max_new_tokens": 12, "ignore_eos": True}, "beams": {"num_beams": 3}}
    job = OnNpu(tmp_path / "report")
    model_flags = flags(shape, checkpoint, folder, bf16=True)
    requests, found = generate(job, [batch, search], model_flags, max_sequence_length=200)
    model = hugging_face.load(folder)
    for prompt, request in zip(prompts, requests, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + request["tokens"]])).logits[0].log_softmax(-1)
        wanted = [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(request["tokens"])]
        assert [choice["logprob"] for choice in request["choices"]] == pytest.approx(wanted, abs=0.25)
    for prompt, request in zip(prompts, found, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, num_beams=3, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        ours, theirs = (_score(model, prompt, one) for one in (request["tokens"], expected[0, len(prompt) :].tolist()))
        print(f"log-probability of the best beam: {ours:.3f}, of transformers': {theirs:.3f}")
        assert len(request["tokens"]) == 12
        # A rounding may send a search another way. Twelve tokens of a wrong cache are some 30 less.
        assert ours > theirs - 8
    operator = json.loads(job.report.read_text())["operators"]["paged_attention"]
    assert operator["variant"] == "npu"
    assert operator["unsupported"] == {}
    assert all(set(calls) == {"npu"} for calls in operator["calls"].values()), operator


def _score(model: torch.nn.Module, prompt: list[int], tokens: list[int]) -> float:
    """The log-probability of a completion."""
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens))
