"""The handler of plain text."""

import numpy as np
import pytest

from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import HANDLERS, HandlerOptions, create_handler
from ascend_patch.data.text import EMPTY, TextHandler
from ascend_patch.data.tokenize import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


@pytest.mark.parametrize("append_eod", [False, True])
def test_documents_and_sequences(tokenizer, append_eod):
    handler = TextHandler(tokenizer, HandlerOptions(("text", "title"), append_eod))
    records = [{"text": "To be", "title": ""}, {"text": ["or", "", " not"], "title": []}]
    encoded = handler.encode([handler.prepare(record) for record in records])
    end = [tokenizer.eod] if append_eod else []
    one, two, three, empty, four = tokenizer.encode(["To be", "or", "", "", " not"])
    text, title = encoded.columns["text"], encoded.columns["title"]
    assert text.tokens.tolist() == [*one, *end, *two, *three, *four, *end]
    assert text.sequence_lengths.tolist() == [len(one) + len(end), len(two), len(three), len(four) + len(end)]
    assert text.document_sequences.tolist() == [1, 3]
    assert title.tokens.tolist() == [*empty, *end]
    assert title.document_sequences.tolist() == [1, 0]
    assert all(column.tokens.dtype == np.uint16 for column in (text, title))
    assert encoded.notes == {EMPTY: 2}


def test_a_text_without_ids_is_no_sequence(tokenizer_folder):
    """SentencePiece adds no begin-of-sequence token, so that nothing is left of nothing."""
    handler = TextHandler(load_tokenizer(tokenizer_folder, "Llama2Tokenizer"), HandlerOptions(append_eod=True))
    text = handler.encode([[[""]], [["", "To", ""]]]).columns["text"]
    assert text.document_sequences.tolist() == [0, 1]
    assert text.sequence_lengths.tolist() == [text.tokens.size]


def test_nothing(tokenizer):
    encoded = TextHandler(tokenizer, HandlerOptions()).encode([])
    assert encoded.columns["text"].tokens.size == 0
    assert encoded.notes == {}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"content": "x", "n": 1}, r"no 'text' among its keys \('content', 'n'\). Name the key .* --json-keys"),
        ({}, r"no 'text' among its keys \(none\)"),
        ({"text": None}, "'text' holds null. Expected is a string, or an array of strings."),
        ({"text": 3}, "'text' holds a number"),
        ({"text": {"a": 1}}, "'text' holds an object"),
        ({"text": ["a", True]}, "'text' holds an array with a boolean in it"),
        ({"text": "ab\ud83d"}, r"half of a surrogate pair \(\\ud83d at character 2\)"),
    ],
)
def test_records_without_text(tokenizer, record, message):
    with pytest.raises(DataError, match=message):
        TextHandler(tokenizer, HandlerOptions()).prepare(record)


def test_no_such_handler(tokenizer):
    with pytest.raises(DataError, match="--handler-name Mine: there is no such handler. There are GeneralPretrain"):
        create_handler("Mine", tokenizer, HandlerOptions())


@pytest.mark.parametrize("name", HANDLERS)
def test_every_handler_can_be_made(tokenizer, name):
    handler = create_handler(name, tokenizer, HandlerOptions(seq_length=64))
    assert all(dtype in (np.uint16, np.int32) for dtype in handler.columns.values())
    encoded = handler.encode([])
    assert encoded.columns.keys() == handler.columns.keys()
