"""The server, as OpenAI's own client sees it: two ranks, experts on both."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch

from ascend_patch.checkpoint.convert import Options, convert
from tests.system_tests import hugging_face
from tests.system_tests.generation import SHAPE, flags, transformers_greedy
from tests.system_tests.launcher import ROOT, environment, free_port
from tests.system_tests.mixtral import EP2, tiny

pytestmark = pytest.mark.xdist_group("serving")  # one server for all

NAME = "tiny"
LENGTH = 2048
"""Long enough that requests which go on to the end outlast all that a test does meanwhile."""
PROMPT = [5, 17, 40, 9]


class Served:
    """A server, and the model that it serves."""

    def __init__(self, folder: Path) -> None:
        shape = SHAPE | {"max_position_embeddings": LENGTH}
        hf = hugging_face.save(hugging_face.random_model(**shape), folder / "hf")
        checkpoint = convert(Options(hf, folder / "megatron", make_vocab_size_divisible_by=128))
        self.model = hugging_face.load(hf)
        self.flags = flags(shape, checkpoint, hf, seq_length=LENGTH, served_model_name=NAME, max_requests=6)
        self.log = folder / "log"
        self.port = free_port()
        self.process = self.start(self.log)
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def start(self, log: Path) -> subprocess.Popen:
        """Start a server at :attr:`port`."""
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        script = ["-m", "ascend_patch.run", "tasks/inference/serve.py", *tiny(**self.flags | EP2, port=self.port)]
        with log.open("w") as stream:
            return subprocess.Popen(
                [*launch, *script],
                cwd=ROOT,
                env=environment(ASCEND_PATCH_DEVICE="cpu"),
                stdout=stream,
                stderr=stream,
            )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    assert json.load(answer) == {"status": "ok"}
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise AssertionError(f"no answer\n{self.log.read_text()[-4000:]}")

    def greedy(self, **options: object):
        """A greedy completion of :data:`PROMPT`."""
        return self.client.completions.create(model=NAME, prompt=PROMPT, temperature=0, **options)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    try:
        served.wait()
        yield served
    finally:
        served.process.terminate()  # torchrun ends its ranks; killed, it would leave them behind
        served.process.wait(60)


def test_completions(served: Served) -> None:
    expected = transformers_greedy(served.model, PROMPT, 12)
    assert 2 not in expected[:1]
    tokens = expected[: expected.index(2)] if 2 in expected else expected
    answer = served.greedy(max_tokens=12, logprobs=2)
    (choice,) = answer.choices
    assert choice.finish_reason == ("stop" if 2 in expected else "length")
    with torch.no_grad():
        logprobs = served.model(torch.tensor([PROMPT + tokens])).logits[0].log_softmax(-1)
    wanted = [float(logprobs[len(PROMPT) - 1 + i, token]) for i, token in enumerate(tokens)]
    assert choice.logprobs.token_logprobs == pytest.approx(wanted, abs=1e-4)
    assert answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == len(tokens)
    stream = list(served.greedy(max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in stream if piece.choices) == choice.text
    assert stream[-2].choices[0].finish_reason == choice.finish_reason
    assert stream[-1].usage == answer.usage


def test_chat(served: Served) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the model of a test"}]
    options = {"model": NAME, "messages": messages, "max_tokens": 10, "temperature": 0.8, "seed": 3, "n": 2}
    first, again = (served.client.chat.completions.create(**options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert texts[0] != texts[1]
    pieces = served.client.chat.completions.create(**options | {"n": 1, "stream": True, "logprobs": True})
    chunks = [piece.choices[0] for piece in pieces]
    assert chunks[0].delta.role == "assistant"
    assert "".join(chunk.delta.content for chunk in chunks) == texts[0]


def test_choices_at_once(served: Served) -> None:
    """Several choices are what each is alone, and more than there may be requests are refused."""
    options = {"model": NAME, "prompt": PROMPT, "max_tokens": 12, "temperature": 0.9}
    alone = [served.client.completions.create(**options, seed=7 + i).choices[0].text for i in range(3)]
    whole = served.client.completions.create(**options, seed=7, n=3)
    assert sum(choice.text == text for choice, text in zip(whole.choices, alone, strict=True)) >= 2
    texts = ["", "", ""]
    for piece in served.client.completions.create(**options, seed=7, n=3, stream=True):
        texts[piece.choices[0].index] += piece.choices[0].text
    assert sum(text == other for text, other in zip(texts, alone, strict=True)) >= 2  # see test_generation
    with pytest.raises(openai.BadRequestError, match="n is 7, allowed: up to 6"):
        served.client.completions.create(**options, n=7)
    stream = served.client.completions.create(**options | {"max_tokens": LENGTH - 4, "n": 6}, stream=True)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError):
        served.client.completions.create(**options, n=6)
    stream.close()  # and none of the six is left
    _eventually(lambda: served.client.completions.create(**options | {"max_tokens": 1}, n=6))


def test_many_at_once(served: Served) -> None:
    """Each gets what it gets alone; one more than are allowed is told to wait."""
    alone = [
        served.client.completions.create(model=NAME, prompt=[3 + i] * (i + 1), max_tokens=20, seed=i).choices[0].text
        for i in range(6)
    ]
    with ThreadPoolExecutor(6) as threads:
        together = threads.map(
            lambda i: (
                served.client.completions.create(model=NAME, prompt=[3 + i] * (i + 1), max_tokens=20, seed=i)
                .choices[0]
                .text
            ),
            range(6),
        )
    assert sum(one == other for one, other in zip(together, alone, strict=True)) >= 5  # see test_generation
    endless = {"max_tokens": LENGTH - len(PROMPT), "stream": True, "extra_body": {"ignore_eos": True}}
    busy = [served.greedy(**endless) for _ in range(6)]
    with pytest.raises(openai.RateLimitError, match="6 requests are under way"):
        served.greedy(max_tokens=1)
    for stream in busy:
        stream.close()  # the clients go away in mid-stream: their places become free
    _eventually(lambda: served.greedy(max_tokens=1))


def _eventually(call) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            call()
            return
        except openai.RateLimitError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "gpt"}, "'gpt' is not served here; 'tiny' is"),
        ({"prompt": [3] * LENGTH}, f"has {LENGTH} tokens.*may have {LENGTH}"),
        ({"prompt": [9999]}, "tokens from 9999 to 9999"),
        ({"prompt": []}, "The prompt is empty"),
        ({"temperature": -1}, "temperature: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"extra_body": {"lora_path": "/etc/passwd"}}, "lora_path: Extra inputs are not permitted"),
        ({"stop": ["", "x"]}, "stop is"),
        ({"extra_body": {"num_beams": 2}}, "num_beams: Extra inputs are not permitted"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(served: Served, changes: dict, told: str) -> None:
    with pytest.raises(openai.BadRequestError, match=told):
        served.client.completions.create(**{"model": NAME, "prompt": PROMPT} | changes)
    with pytest.raises(openai.BadRequestError, match="must be the user's"):
        served.client.chat.completions.create(model=NAME, messages=[{"role": "assistant", "content": "x"}])
    assert served.greedy(max_tokens=2).choices  # and goes on


def test_a_request_that_is_too_large_is_not_read(served: Served) -> None:
    """Whether it says so, or does not say how large it is."""
    for body, status in ((b" " * (5 << 20), 413), (iter([b" " * 1024]), 411)):
        request = urllib.request.Request(f"{served.url}/v1/completions", body, {"Content-Type": "application/json"})
        with pytest.raises((urllib.error.HTTPError, urllib.error.URLError)) as found:
            urllib.request.urlopen(request, timeout=30)
        if isinstance(found.value, urllib.error.HTTPError):  # or the connection is closed while it is sent
            assert found.value.code == status


def test_a_port_in_use(served: Served, tmp_path: Path) -> None:
    second = served.start(tmp_path / "log")
    assert second.wait(120) == 1
    assert f"--port {served.port} cannot be used: Address already in use" in (tmp_path / "log").read_text()


def test_shutdown_completes_what_is_under_way(served: Served) -> None:
    """The last test here: the server ends."""
    stream = served.greedy(max_tokens=60, stream=True, extra_body={"repetition_penalty": 3.0})
    first = next(stream)
    served.process.send_signal(signal.SIGTERM)
    rest = list(stream)
    assert rest[-1].choices[0].finish_reason in ("length", "stop")
    assert first.choices[0].text is not None
    served.process.wait(60)
    assert "[rank" not in served.log.read_text()  # torchrun's own traceback names the signal; a rank's has its number
