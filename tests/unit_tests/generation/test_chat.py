"""Chat: prompts as the templates make them that tune, answers in pieces, and what is refused."""

import io
from collections.abc import Sequence

import pytest

from ascend_patch.data.conversations import Conversation, Turn
from ascend_patch.data.templates import TEMPLATES, create_template
from ascend_patch.data.tokenize import HuggingFaceTokenizer
from ascend_patch.generation.base_engine import Request
from ascend_patch.generation.chat import Chat, Terminal, new_text, prompt_ids
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import SamplingOptions

CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer(tokenizer_folder) -> HuggingFaceTokenizer:
    tokenizer = HuggingFaceTokenizer(tokenizer_folder)
    tokenizer.hf.chat_template = CHATML
    return tokenizer


def messages(*texts: str, system: str = "") -> list[dict[str, str]]:
    roles = ("user", "assistant")
    spoken = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system else []) + spoken


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("system", ["", "In the mind"])
def test_a_prompt_is_what_tuning_has_before_the_answer(tokenizer, name, system):
    template = create_template(name, tokenizer)
    turns = (Turn("To be,", "or not to be,"), Turn("that is", "the question: to be"))
    (example,) = template.encode([Conversation(turns, system)])
    prompt = prompt_ids(template, messages("To be,", "or not to be,", "that is", system=system))
    assert prompt == example.ids[: len(prompt)].tolist()
    assert example.learned[len(prompt) :].all()
    assert not example.learned[len(prompt) - 1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "The last message must be the user's"),
        (messages("a", "b"), "The last message must be the user's"),
        ([{"role": "user", "content": " "}], "message 1.* is empty"),
        ([{"role": "wizard", "content": "x"}, *messages("a")], "is from 'wizard'"),
        ([{"role": "user"}], "holds a NoneType, not text"),
        ([{"role": "user", "content": {"text": 1}}], "holds a dict, not text"),
    ],
)
def test_what_is_no_conversation(tokenizer, given, told):
    with pytest.raises(GenerationError, match=told):
        prompt_ids(create_template("mistral", tokenizer), given)


class Scripted:
    """An engine that answers with given tokens, one a step."""

    def __init__(self, tokenizer, answers: Sequence[Sequence[int]], bytes_at_once: int = 1) -> None:
        self._tokenizer, self._answers = tokenizer, [list(answer) for answer in answers]
        self.prompts: list[list[int]] = []
        self.seeds: list[int] = []

    def submit(self, prompt, options, begins_anew) -> Request:
        self.prompts.append(list(prompt))
        self.seeds.append(options.seed)
        self._running = Request(0, list(prompt), options, self._tokenizer, begins_anew)
        self._left = self._answers.pop(0)
        return self._running

    def step(self) -> None:
        if self._left:
            self._running.tokens.append(self._left.pop(0))
        else:
            self._running.finish = "stop"


def test_an_answer_comes_in_pieces_and_is_remembered(tokenizer):
    """A character of several byte tokens appears when it is complete."""
    answers = [tokenizer.hf(text, add_special_tokens=False)["input_ids"] for text in ("to 🙂 be", "sleep")]
    assert any(
        tokenizer.hf.decode(answers[0][:end]).endswith("\N{REPLACEMENT CHARACTER}") for end in range(len(answers[0]))
    )
    engine = Scripted(tokenizer.hf, answers)
    template = create_template("mistral", tokenizer)
    chat = Chat(engine, template, SamplingOptions(), "In the mind")
    pieces = list(chat.answer("To be,"))
    assert len(pieces) > 2
    assert "".join(pieces) == "to 🙂 be"
    assert "".join(chat.answer("To die,")) == "sleep"
    assert chat.messages == messages("To be,", "to 🙂 be", "To die,", "sleep", system="In the mind")
    assert engine.prompts[1] == prompt_ids(template, chat.messages[:-1])
    assert len(set(engine.seeds)) == 2
    chat.clear()
    assert chat.messages == messages(system="In the mind")


def test_half_a_stop_text_is_not_shown(tokenizer):
    prompt, tokens = (tokenizer.hf(text, add_special_tokens=False)["input_ids"] for text in ("to", "be or not"))
    request = Request(0, prompt, SamplingOptions(stop=("not to", "?")), tokenizer.hf, tokens=tokens)
    assert request.text == " be or not"
    request.begins_anew = True
    assert new_text(request, 0) == "be or "
    assert new_text(request, 3) == "or "
    request.finish = "length"
    assert new_text(request, 6) == "not"


def test_the_terminal():
    target = io.StringIO()
    terminal = Terminal(io.StringIO("\n  \nTo be\n/quit\nnever\n"), target)
    assert terminal.read() == "To be"
    assert terminal.read() is None
    terminal.show("or not")
    assert target.getvalue() == "or not"
    assert Terminal(io.StringIO(""), target).read() is None
