"""Handlers of instructions: columns, cutting and packing."""

from math import ceil
from pathlib import Path

import numpy as np
import pytest

from ascend_patch.data.conversations import Conversation, Turn
from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import Encoded, HandlerOptions, create_handler
from ascend_patch.data.instruction import CUT, IDS, LABELS, WITHOUT_ANSWER
from ascend_patch.data.templates import IGNORED, MistralTemplate
from ascend_patch.data.tokenize import Tokenizer, load_tokenizer

RECORDS = [
    {"instruction": f"To be {number},", "output": "or not to be, that is the question: " * (1 + number % 4)}
    for number in range(9)
]
HANDLERS = {
    "GeneralInstructionHandler": RECORDS[0],
    "SharegptStyleInstructionHandler": {
        "conversations": [
            {"from": "human", "value": RECORDS[0]["instruction"]},
            {"from": "gpt", "value": RECORDS[0]["output"]},
        ]
    },
    "OpenAIStyleInstructionHandler": {
        "messages": [
            {"role": "user", "content": RECORDS[0]["instruction"]},
            {"role": "assistant", "content": RECORDS[0]["output"]},
        ]
    },
}


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


def encode(tokenizer: Tokenizer, records: list, name: str = "GeneralInstructionHandler", **options) -> Encoded:
    handler = create_handler(name, tokenizer, HandlerOptions(**options))
    encoded = handler.encode([handler.prepare(record) for record in records])
    assert list(encoded.columns) == list(handler.columns) == [IDS, LABELS]
    for column, dtype in handler.columns.items():
        assert encoded.columns[column].tokens.dtype == dtype
    return encoded


def pairs(encoded: Encoded) -> list[list[tuple[list[int], list[int]]]]:
    """Documents of (ids, labels) of each sequence."""
    ids, labels = encoded.columns[IDS], encoded.columns[LABELS]
    assert np.array_equal(ids.sequence_lengths, labels.sequence_lengths)
    assert np.array_equal(ids.document_sequences, labels.document_sequences)
    assert ids.sequence_lengths.sum() == len(ids.tokens) == len(labels.tokens)
    cuts = np.cumsum(ids.sequence_lengths)[:-1]
    split = [np.split(column.tokens, cuts) for column in (ids, labels)] if len(ids.sequence_lengths) else [[], []]
    sequences = iter([(one.tolist(), other.tolist()) for one, other in zip(*split, strict=True)])
    return [[next(sequences) for _ in range(count)] for count in ids.document_sequences]


@pytest.mark.parametrize("name", HANDLERS)
def test_formats(name: str, tokenizer: Tokenizer) -> None:
    (document,) = pairs(encode(tokenizer, [HANDLERS[name]], name))
    turn = Turn(RECORDS[0]["instruction"], RECORDS[0]["output"])
    (example,) = MistralTemplate(tokenizer).encode([Conversation((turn,))])
    assert document == [(example.ids.tolist(), example.labels.tolist())]


def test_padded_is_a_conversation_a_document(tokenizer: Tokenizer) -> None:
    encoded = encode(tokenizer, RECORDS)
    assert encoded.notes == {}
    assert encoded.columns[LABELS].tokens.dtype == np.int32  # signed
    documents = pairs(encoded)
    assert [len(document) for document in documents] == [1] * len(RECORDS)
    for ((ids, labels),) in documents:
        assert labels[-1] == ids[-1] == tokenizer.eod
        assert labels[0] == IGNORED and ids[0] == 1
        assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))


def test_packed_has_the_same_conversations(tokenizer: Tokenizer) -> None:
    padded = [document[0] for document in pairs(encode(tokenizer, RECORDS))]
    longest = max(len(ids) for ids, _ in padded)
    length = 2 * longest
    packed = pairs(encode(tokenizer, RECORDS, pack=True, seq_length=length))
    assert sorted(sequence for document in packed for sequence in document) == sorted(padded)
    assert len(packed) < len(padded)
    assert all(sum(len(ids) - 1 for ids, _ in document) <= length for document in packed)


@pytest.mark.parametrize("multiple", [8, 64])
def test_packed_with_room_for_padding(tokenizer: Tokenizer, multiple: int) -> None:
    padded = [document[0] for document in pairs(encode(tokenizer, RECORDS))]
    length = 2 * multiple * ceil(max(len(ids) for ids, _ in padded) / multiple)
    packed = pairs(encode(tokenizer, RECORDS, pack=True, seq_length=length, pad_to_multiple_of=multiple))
    assert sorted(sequence for document in packed for sequence in document) == sorted(padded)
    assert len(packed) < len(padded)
    assert all(sum(multiple * ceil((len(ids) - 1) / multiple) for ids, _ in document) <= length for document in packed)


def test_padding_goes_with_packing(tokenizer: Tokenizer) -> None:
    for options in ({"seq_length": 16}, {"seq_length": 18, "pack": True}):
        with pytest.raises(DataError, match="--pad-to-multiple-of 4 .* goes with --pack and a --seq-length that"):
            encode(tokenizer, RECORDS, pad_to_multiple_of=4, **options)


def test_cut_at_the_last_label_of_a_sample(tokenizer: Tokenizer) -> None:
    whole = [document[0] for document in pairs(encode(tokenizer, RECORDS))]
    length = sorted(len(ids) for ids, _ in whole)[4]
    encoded = encode(tokenizer, RECORDS, seq_length=length)
    assert [document[0] for document in pairs(encoded)] == [(i[: length + 1], t[: length + 1]) for i, t in whole]
    assert encoded.notes == {CUT: sum(len(ids) > length + 1 for ids, _ in whole)}


def test_what_loses_its_answer_is_left_out_and_counted(tokenizer: Tokenizer) -> None:
    long_question = {"instruction": "To be, or not to be " * 20, "output": "that"}
    for options in ({}, {"pack": True}):
        encoded = encode(tokenizer, [RECORDS[0], long_question], seq_length=150, **options)
        assert encoded.notes == {CUT: 1, WITHOUT_ANSWER: 1}
        assert len(pairs(encoded)) == 1


def test_nothing_in_a_batch(tokenizer: Tokenizer) -> None:
    assert pairs(encode(tokenizer, [])) == []
    assert pairs(encode(tokenizer, [], pack=True, seq_length=8)) == []


def test_the_tokenizers_own_template(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="the tokenizer has no chat_template"):
        encode(tokenizer, RECORDS, prompt_template="tokenizer")
    tokenizer.hf.chat_template = "{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}"
    (document,) = pairs(encode(tokenizer, [{"instruction": "To be", "output": "or not"}], prompt_template="tokenizer"))
    ((ids, labels),) = document
    assert tokenizer.hf.decode(ids).replace(" ", "") == "Tobe</s>ornot</s>"
    assert labels.index(tokenizer.eod) == len(labels) - 1  # of the question's end nothing is learned
    with pytest.raises(DataError, match="holds '</s>', a special token"):
        encode(tokenizer, [{"instruction": "</s>", "output": "or not"}], prompt_template="tokenizer")


def test_bad_options_and_records(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="--pack needs --seq-length"):
        encode(tokenizer, RECORDS, pack=True)
    with pytest.raises(DataError, match="'output' is empty"):
        encode(tokenizer, [{"instruction": "q", "output": ""}])
