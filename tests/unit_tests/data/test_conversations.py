"""Records of three formats become conversations, or an error that names the key."""

import pytest

from ascend_patch.data.conversations import Conversation, Turn, from_any, from_instruction, from_messages, from_sharegpt
from ascend_patch.data.errors import DataError

HELLO = (Turn("hi", "hello"),)
READERS = {
    "instruction": from_instruction,
    "output": from_instruction,
    "conversations": from_sharegpt,
    "messages": from_messages,
}


def test_alpaca() -> None:
    assert from_instruction({"instruction": "hi", "output": "hello"}) == Conversation(HELLO)
    assert from_instruction({"instruction": "hi", "input": "", "output": "hello", "id": 3}) == Conversation(HELLO)
    record = {
        "instruction": "Translate.",
        "input": "eins\nzwei",
        "output": "one\ntwo",
        "system": "Be brief.",
        "history": [["hi", "hello"]],
    }
    assert from_instruction(record) == Conversation((*HELLO, Turn("Translate.\neins\nzwei", "one\ntwo")), "Be brief.")


def test_sharegpt() -> None:
    messages = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    assert from_sharegpt({"conversations": messages}) == Conversation(HELLO)
    assert from_sharegpt({"conversations": messages, "system": "S"}) == Conversation(HELLO, "S")
    in_list = [{"from": "system", "value": "S"}, *messages]
    assert from_sharegpt({"conversations": in_list}) == Conversation(HELLO, "S")


def test_openai() -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
        {"role": "assistant", "content": "hello"},
    ]
    assert from_messages({"messages": messages}) == Conversation(HELLO, "S")


def test_messages_of_one_role_are_joined_and_a_last_question_is_left_out() -> None:
    said = [("human", "a"), ("human", "b"), ("gpt", "c"), ("gpt", "d"), ("human", "e"), ("gpt", "f"), ("human", "g")]
    record = {"conversations": [{"from": role, "value": text} for role, text in said]}
    assert from_sharegpt(record).turns == (Turn("a\n\nb", "c\n\nd"), Turn("e", "f"))


def test_texts_are_not_changed() -> None:
    record = {"instruction": " hi\n", "output": "\thello "}
    assert from_instruction(record).turns == (Turn(" hi\n", "\thello "),)


def test_messages_are_what_chat_templates_take() -> None:
    conversation = Conversation((*HELLO, Turn("q", "a")), "S")
    assert [(m["role"], m["content"]) for m in conversation.messages] == [
        ("system", "S"),
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "q"),
        ("assistant", "a"),
    ]
    assert from_messages({"messages": conversation.messages}) == conversation


def test_any_format() -> None:
    assert from_any({"instruction": "hi", "output": "hello"}) == Conversation(HELLO)
    assert from_any({"messages": Conversation(HELLO).messages}) == Conversation(HELLO)
    assert from_any(
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    ) == Conversation(HELLO)
    with pytest.raises(DataError, match=r"the keys are 'text'; .*'instruction'.*'conversations'.*'messages'"):
        from_any({"text": "hi"})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"output": "a"}, r"'instruction' is missing; the record's keys are 'output'"),
        ({"instruction": "q"}, r"'output' is missing"),
        ({"instruction": "q", "output": ""}, r"'output' is empty"),
        ({"instruction": "q", "output": " \n"}, r"'output' is empty"),
        ({"instruction": "  ", "output": "a"}, r"'instruction' is empty"),
        ({"instruction": "q", "output": 3}, r"'output' holds a int"),
        ({"instruction": "q", "input": ["x"], "output": "a"}, r"'input' holds a list"),
        ({"instruction": "q", "output": "\ud800"}, r"'output' holds half of a surrogate pair \(character 0\)"),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, r"'history' is not a list of \[question, answer\]"),
        ({"instruction": "q", "output": "a", "history": [["q", ""]]}, r"'history', turn 1, the answer is empty"),
        ({"conversations": "x"}, r"'conversations' is not a list"),
        ({"conversations": []}, r"no answer"),
        ({"conversations": ["x"]}, r"message 1 is no object with 'from' and 'value'"),
        ({"conversations": [{"from": "human", "value": "q"}]}, r"no answer"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, r"begins with an answer"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": ""}]}, r"message 2 is empty"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, r"message 1 is from .observation"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, r"message 1 is from \['user'\]"),
        ({"messages": [{"role": "user", "content": None}]}, r"message 1 holds a NoneType"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"message 1 holds a list"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{}]}]},
            r"message 2 calls tools",
        ),
    ],
)  # fmt: skip
def test_bad_records(record: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        READERS[next(key for key in READERS if key in record)](record)
