"""The ids of conversations, and which of them are learned."""

import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
from transformers import AutoTokenizer

from ascend_patch.data.conversations import Conversation, Turn
from ascend_patch.data.errors import DataError
from ascend_patch.data.templates import IGNORED, TEMPLATES, ChatTemplate, Example, MistralTemplate, create_template

BOS, EOS = 1, 2
THREE_TURNS = Conversation(
    (Turn("To be,", "or not to be,"), Turn("that is", "the question:"), Turn("Whether", "'tis nobler")), "In the mind"
)
CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer(tokenizer_folder) -> SimpleNamespace:
    """As ascend_patch.data.tokenize has it, for as much as templates use; a fresh one for each test."""
    return SimpleNamespace(hf=AutoTokenizer.from_pretrained(tokenizer_folder))


@pytest.fixture(scope="session")
def pieces(sentencepiece_model):
    """SentencePiece itself."""
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)


def mistral_v1(pieces, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """What `MistralTokenizer.v1()` of mistral-common 1.13.1 does, told in terms of SentencePiece.

    Seen to be so with that package and Mixtral's own tokenizer.model: no difference in 1999 instructions of the package
    llamafactory (419106 tokens) and in 2000 random conversations like those below.
    """
    ids, learned = [BOS], [False]
    for number, (question, answer) in enumerate(conversation.turns):
        if number == 0 and conversation.system:
            question = f"{conversation.system}\n\n{question}"
        for part, is_answer in ((pieces.encode(f"[INST] {question} [/INST]"), False), (pieces.encode(answer), True)):
            part = [*part, EOS] if is_answer else part
            ids += part
            learned += [is_answer] * len(part)
    return ids, learned


def check(example: Example, ids: list[int], learned: list[bool]) -> None:
    """Token by token."""
    assert example.ids.tolist() == ids
    assert example.learned.tolist() == learned
    assert example.labels.tolist() == [t if is_learned else IGNORED for t, is_learned in zip(ids, learned, strict=True)]
    assert example.ids.dtype == example.labels.dtype == np.int32


def test_mistral_word_by_word(tokenizer) -> None:
    (example,) = MistralTemplate(tokenizer).encode([Conversation((Turn("To be,", "or not"), Turn("that", "is")), "S")])
    words = tokenizer.hf.convert_ids_to_tokens(example.ids.tolist())
    text, marked = "", ""
    for word, learned in zip(words, example.learned, strict=True):
        byte = re.fullmatch(r"<0x(..)>", word)
        text += chr(int(byte[1], 16)) if byte else word
        marked = marked.ljust(len(text), "+" if learned else "-")
    assert text == "<s>▁[INST]▁S\n\nTo▁be,▁[/INST]▁or▁not</s>▁[INST]▁that▁[/INST]▁is</s>"
    assert marked == "".join(
        sign * len(part)
        for sign, part in [
            ("-", "<s>▁[INST]▁S\n\nTo▁be,▁[/INST]"),
            ("+", "▁or▁not</s>"),
            ("-", "▁[INST]▁that▁[/INST]"),
            ("+", "▁is</s>"),
        ]
    )


def test_mistral_is_mistral_commons(tokenizer, pieces) -> None:
    (example,) = MistralTemplate(tokenizer).encode([THREE_TURNS])
    check(example, *mistral_v1(pieces, THREE_TURNS))


def test_mistral_with_random_texts(tokenizer, pieces) -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    generator = random.Random(seed)
    parts = [
        "to",
        "be",
        " ",
        "  ",
        "\n",
        "[INST]",
        "[/INST]",
        "</s>",
        "<s>",
        "<unk>",
        "▁",
        "é",
        "中",
        "\u3000",
        "\r",
        ".",
    ]

    def text() -> str:
        return "".join(generator.choices(parts, k=generator.randint(0, 12))) + "x"

    conversations = [
        Conversation(
            tuple(Turn(text(), text()) for _ in range(generator.randint(1, 4))), generator.choice(["", text()])
        )
        for _ in range(100)
    ]
    examples = MistralTemplate(tokenizer).encode(conversations)
    for conversation, example in zip(conversations, examples, strict=True):
        check(example, *mistral_v1(pieces, conversation))
        assert example.learned.sum() == sum(len(pieces.encode(turn.answer)) + 1 for turn in conversation.turns)


def test_mistral_without_special_tokens(tokenizer) -> None:
    tokenizer.hf.bos_token = None
    with pytest.raises(DataError, match=r"bos_token and .* eos_token; the tokenizer's are None and '</s>'"):
        MistralTemplate(tokenizer)


def test_the_tokenizers_own(tokenizer) -> None:
    tokenizer.hf.chat_template = CHATML
    (example,) = ChatTemplate(tokenizer).encode([THREE_TURNS])
    whole = tokenizer.hf.apply_chat_template(THREE_TURNS.messages, tokenize=True, return_dict=False)
    assert example.ids.tolist() == whole
    assert example.labels[example.learned].tolist() == example.ids[example.learned].tolist()
    spans = np.flatnonzero(np.diff(example.learned.astype(int), prepend=0, append=0)).reshape(-1, 2)
    said = [tokenizer.hf.decode(example.ids[start:end].tolist()) for start, end in spans]
    assert [text.strip() for text in said] == [f"{turn.answer}</s>" for turn in THREE_TURNS.turns]


def test_mistrals_template_in_jinja_gives_the_same(tokenizer, pieces) -> None:
    tokenizer.hf.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role']=='user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    conversation = Conversation(THREE_TURNS.turns)
    (example,) = ChatTemplate(tokenizer).encode([conversation])
    check(example, *mistral_v1(pieces, conversation))


def test_a_chat_template_that_rewrites(tokenizer) -> None:
    tokenizer.hf.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(DataError, match="changes what it said of earlier messages"):
        ChatTemplate(tokenizer).encode([THREE_TURNS])


def test_a_chat_template_that_refuses(tokenizer) -> None:
    tokenizer.hf.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    )
    template = ChatTemplate(tokenizer)
    template.check(Conversation(THREE_TURNS.turns))
    with pytest.raises(DataError, match=r"refuses the conversation: no system\."):
        template.check(THREE_TURNS)


def test_a_text_that_spells_a_special_token(tokenizer) -> None:
    conversation = Conversation((Turn("q", "a</s> b"),))
    MistralTemplate(tokenizer).check(conversation)  # it stays text there
    tokenizer.hf.chat_template = CHATML
    with pytest.raises(DataError, match="a message of the assistant holds '</s>', a special token"):
        ChatTemplate(tokenizer).check(conversation)


def test_by_name(tokenizer) -> None:
    assert isinstance(create_template("mistral", tokenizer), MistralTemplate)
    with pytest.raises(DataError, match="has no chat_template. Use --prompt-template mistral"):
        create_template("tokenizer", tokenizer)
    with pytest.raises(DataError, match=f"no such template. There are {', '.join(TEMPLATES)}"):
        create_template("alpaca", tokenizer)
