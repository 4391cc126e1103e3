"""Conversations, and the formats in which instruction data states them.

Each reader takes one record and returns a :class:`Conversation`, or raises a :class:`DataError` that names the key.
Messages are joined as mistral-common joins them: system messages become one, and so do messages of one role that
follow each other, with an empty line between them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from ascend_patch.data.errors import DataError

_BETWEEN = "\n\n"
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


class Turn(NamedTuple):
    """A question and its answer; neither is blank."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """At least one turn. ``system`` is "" where there is no system message."""

    turns: tuple[Turn, ...]
    system: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat templates want it: ``[{"role": "user", "content": ...}, ...]``."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            found += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return found


def from_instruction(record: Mapping[str, Any]) -> Conversation:
    """Alpaca: ``instruction`` and ``output``; optionally ``input``, ``system`` and ``history`` (earlier turns).

    The input follows the instruction on a line of its own.
    """
    messages = [("system", _optional(record, "system"))]
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise DataError("'history' is not a list of [question, answer] pairs.")
    for number, (question, answer) in enumerate(history, start=1):
        where = f"'history', turn {number}"
        messages += [
            ("user", _text(question, f"{where}, the question")),
            ("assistant", _text(answer, f"{where}, the answer")),
        ]
    question = "\n".join(filter(None, (_required(record, "instruction"), _optional(record, "input"))))
    return _conversation([*messages, ("user", question), ("assistant", _required(record, "output"))])


def from_sharegpt(record: Mapping[str, Any]) -> Conversation:
    """ShareGPT: ``conversations``, a list of ``{"from": "human" or "gpt", "value": ...}``; optionally ``system``."""
    return _from_list(record, "conversations", "from", "value")


def from_messages(record: Mapping[str, Any]) -> Conversation:
    """OpenAI: ``messages``, a list of ``{"role": "user" or "assistant" or "system", "content": ...}``."""
    return _from_list(record, "messages", "role", "content")


#: Key that only records of the format have -> reader.
FORMATS: dict[str, Callable[[Mapping[str, Any]], Conversation]] = {
    "instruction": from_instruction,
    "conversations": from_sharegpt,
    "messages": from_messages,
}


def from_any(record: Mapping[str, Any]) -> Conversation:
    """The reader that the record's keys ask for."""
    for key, read in FORMATS.items():
        if key in record:
            return read(record)
    raise DataError(
        f"the keys are {_names(record)}; instruction data has 'instruction' and 'output' (Alpaca), 'conversations' "
        "(ShareGPT) or 'messages' (OpenAI)."
    )


def _from_list(record: Mapping[str, Any], key: str, role_key: str, text_key: str) -> Conversation:
    entries = record.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{key!r} is not a list of messages; the record's keys are {_names(record)}.")
    messages = [("system", _optional(record, "system"))]
    for number, entry in enumerate(entries, start=1):
        where = f"{key!r}, message {number}"
        if not isinstance(entry, Mapping) or role_key not in entry:
            raise DataError(f"{where} is no object with {role_key!r} and {text_key!r}.")
        role = _ROLES.get(str(entry[role_key]))
        if role is None:
            raise DataError(
                f"{where} is from {entry[role_key]!r}, which no template here knows. There are {', '.join(_ROLES)}."
            )
        if entry.get("tool_calls"):
            raise DataError(f"{where} calls tools, which no template here knows.")
        messages.append((role, _text(_joined(entry.get(text_key)), where)))
    return _conversation(messages)


def _joined(content: Any) -> Any:
    """OpenAI's list of parts as one text, if text is all there is in it."""
    if isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def _conversation(messages: Iterable[tuple[str, str]]) -> Conversation:
    """Join what belongs together, and pair questions with answers. A last question without an answer is left out."""
    messages = [(role, text) for role, text in messages if text]
    system = _BETWEEN.join(text for role, text in messages if role == "system")
    spoken = groupby((m for m in messages if m[0] != "system"), key=lambda m: m[0])
    joined = [(role, _BETWEEN.join(text for _, text in group)) for role, group in spoken]
    if joined and joined[0][0] != "user":
        raise DataError("the conversation begins with an answer; a question must come first.")
    texts = [text for _, text in joined]
    turns = tuple(map(Turn, texts[::2], texts[1::2]))
    if not turns:
        raise DataError("the conversation has no answer: there is nothing to learn from it.")
    return Conversation(turns, system)


def _required(record: Mapping[str, Any], key: str) -> str:
    if key not in record:
        raise DataError(f"{key!r} is missing; the record's keys are {_names(record)}.")
    return _text(record[key], repr(key))


def _optional(record: Mapping[str, Any], key: str) -> str:
    return _text(record[key], repr(key)) if record.get(key) else ""


def _text(value: Any, where: str) -> str:
    """The text, as it is."""
    if not isinstance(value, str):
        raise DataError(f"{where} holds a {type(value).__name__}, not text.")
    if not value.strip():
        raise DataError(f"{where} is empty.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half of a surrogate pair (character {error.start}), which is no text."
        ) from error
    return value


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, record)) or "none"
