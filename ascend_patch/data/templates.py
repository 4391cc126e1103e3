"""Templates: which token ids a conversation becomes, and which of them the model learns to say.

Learned are the tokens of every answer with the token that ends it; never a question, a system message or the
markers around them.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from ascend_patch.data.conversations import Conversation
from ascend_patch.data.errors import DataError
from ascend_patch.data.tokenize import Tokenizer

#: The label of a token that is not learned, as PyTorch and Hugging Face have it.
IGNORED = -100


class Example(NamedTuple):
    """One conversation in tokens: ``ids [n]`` int32 and ``learned [n]`` bool."""

    ids: np.ndarray
    learned: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """``[n]`` int32: the id itself where it is learned, else :data:`IGNORED`. Not shifted."""
        return np.where(self.learned, self.ids, np.int32(IGNORED))

    @classmethod
    def of(cls, parts: Sequence[tuple[Sequence[int], bool]]) -> "Example":
        """From consecutive ids, and whether they are learned."""
        ids = np.array([token for part, _ in parts for token in part], np.int32)
        return cls(ids, np.repeat([learned for _, learned in parts], [len(part) for part, _ in parts]))


class Template(Protocol):
    """What every template has."""

    def check(self, conversation: Conversation) -> None:
        """Raise :class:`DataError` if the template cannot be used for this conversation."""

    def encode(self, conversations: Sequence[Conversation]) -> list[Example]:
        """Tokenize conversations, all in one call of the tokenizer where that can be."""


class MistralTemplate:
    """The instruct template of Mistral 7B v0.1 and Mixtral 8x7B: ``<s> [INST] question [/INST] answer</s> [INST] …``.

    The ids are those of mistral-common's ``MistralTokenizer.v1()``: each question with its markers and each answer is
    tokenized for itself. A system message stands before the first question, with an empty line between them, as the
    template has no place of its own for it. What is spelled like a special token in a text stays text.

    Raises:
        DataError: the tokenizer has no tokens that begin and end a sequence.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer.hf
        self._bos, self._eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if self._bos is None or self._eos is None:
            raise DataError(
                f"The template 'mistral' begins a conversation with bos_token and ends answers with eos_token; the "
                f"tokenizer's are {self._tokenizer.bos_token!r} and {self._tokenizer.eos_token!r}. State both in its "
                "tokenizer_config.json, or use --prompt-template tokenizer."
            )

    def check(self, conversation: Conversation) -> None:
        """See :class:`Template`. Every conversation will do."""

    def encode(self, conversations: Sequence[Conversation]) -> list[Example]:
        """See :class:`Template`."""
        if not conversations:
            return []
        texts = [text for conversation in conversations for text in _parts(conversation)]
        encoded = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
        pieces = iter(encoded["input_ids"])
        examples = []
        for conversation in conversations:
            parts: list[tuple[Sequence[int], bool]] = [([self._bos], False)]
            for question, answer in zip(*[islice(pieces, 2 * len(conversation.turns))] * 2, strict=True):
                parts += [(question, False), ([*answer, self._eos], True)]
            examples.append(Example.of(parts))
        return examples


def _parts(conversation: Conversation) -> list[str]:
    """What is tokenized for itself."""
    parts = []
    before = f"{conversation.system}\n\n" if conversation.system else ""
    for turn in conversation.turns:
        parts += [f"[INST] {before}{turn.question} [/INST]", turn.answer]
        before = ""
    return parts


class ChatTemplate:
    """The tokenizer's own template (``chat_template`` in its configuration).

    An answer is what a conversation up to it has more than the same one up to its question with the generation
    prompt. A template must therefore only ever append; one that rewrites earlier messages is refused.

    Raises:
        DataError: the tokenizer has no template; in :meth:`encode`, the template is one of those.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer.hf
        if not self._tokenizer.chat_template:
            raise DataError(
                "--prompt-template tokenizer: the tokenizer has no chat_template. Use --prompt-template mistral, or a "
                "folder whose tokenizer_config.json or chat_template.jinja has one."
            )

    def check(self, conversation: Conversation) -> None:
        """See :class:`Template`."""
        messages = conversation.messages
        # The template makes one text of all: what spells a special token would become it.
        for message in messages:
            for token in self._tokenizer.all_special_tokens:
                if token in message["content"]:
                    raise DataError(f"a message of the {message['role']} holds {token!r}, a special token.")
        self._render(messages, tokenize=False)

    def encode(self, conversations: Sequence[Conversation]) -> list[Example]:
        """See :class:`Template`."""
        return [self._encode(conversation) for conversation in conversations]

    def _encode(self, conversation: Conversation) -> Example:
        messages = conversation.messages
        parts: list[tuple[Sequence[int], bool]] = []
        done: list[int] = []
        for index in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
            for upto, is_answer in ((index, False), (index + 1, True)):
                ids = self._render(messages[:upto], add_generation_prompt=not is_answer)
                if ids[: len(done)] != done:
                    raise DataError(
                        "the tokenizer's chat_template changes what it said of earlier messages when one is added, so "
                        "that the answers cannot be found in it. Use --prompt-template mistral."
                    )
                parts.append((ids[len(done) :], is_answer))
                done = ids
        return Example.of(parts)

    def _render(
        self, messages: list[dict[str, str]], tokenize: bool = True, add_generation_prompt: bool = False
    ) -> Any:
        from jinja2 import TemplateError

        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=tokenize, return_dict=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise DataError(f"the tokenizer's chat_template refuses the conversation: {error}.") from error


#: Name on the command line -> what makes it.
TEMPLATES: dict[str, Callable[[Tokenizer], Template]] = {"mistral": MistralTemplate, "tokenizer": ChatTemplate}


def create_template(name: str, tokenizer: Tokenizer) -> Template:
    """The template called ``name``.

    Raises:
        DataError: there is none, or the tokenizer lacks what it needs.
    """
    if name not in TEMPLATES:
        raise DataError(f"--prompt-template {name}: there is no such template. There are {', '.join(TEMPLATES)}.")
    return TEMPLATES[name](tokenizer)
