"""The handler of plain pretraining text: the same documents, byte for byte, as upstream's tools/preprocess_data.py."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np

from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import Documents, Encoded, HandlerOptions, Record
from ascend_patch.data.tokenize import Tokenizer

EMPTY = "empty documents, kept"


class TextHandler:
    """One document of each of ``options.json_keys`` for each record; a column for each key.

    The value is a string, or a list of strings: then each is tokenized for itself and becomes a sequence of the
    document. What gives no ids is no sequence; a document may be without any.
    """

    def __init__(self, tokenizer: Tokenizer, options: HandlerOptions) -> None:
        self._tokenizer = tokenizer
        self._eod = tokenizer.eod if options.append_eod else None
        self.columns = dict.fromkeys(options.json_keys, tokenizer.dtype)

    def prepare(self, record: Record) -> list[list[str]]:
        """The sequences of text of each key.

        Raises:
            DataError: a key is missing, or holds something that is no text.
        """
        return [_sequences(record, key) for key in self.columns]

    def encode(self, prepared: Sequence[list[list[str]]]) -> Encoded:
        """Tokenize all sequences of the batch in one call."""
        texts = [text for record in prepared for sequences in record for text in sequences]
        ids = iter(self._tokenizer.encode(texts))
        notes: Counter[str] = Counter()
        documents: dict[str, list[list[list[int]]]] = {key: [] for key in self.columns}
        for record in prepared:
            for key, sequences in zip(self.columns, record, strict=True):
                notes[EMPTY] += not any(text.strip() for text in sequences)
                document = [sequence for sequence in islice(ids, len(sequences)) if sequence]
                if document and self._eod is not None:
                    document[-1].append(self._eod)
                documents[key].append(document)
        return Encoded({key: _pack(documents[key], dtype) for key, dtype in self.columns.items()}, +notes)


def _sequences(record: Record, key: str) -> list[str]:
    if key not in record:
        found = ", ".join(map(repr, record)) or "none"
        raise DataError(f"no {key!r} among its keys ({found}). Name the key of the text with --json-keys.")
    value = record[key]
    sequences = value if isinstance(value, list) else [value]
    for text in sequences:
        if not isinstance(text, str):
            where = f"a list with a {type(text).__name__}" if sequences is value else f"a {type(text).__name__}"
            raise DataError(f"{key!r} holds {where}, not text. Expected is a string, or a list of strings.")
        if not text.isascii():
            _check_unicode(text, key)
    return sequences


def _check_unicode(text: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(
            f"{key!r} holds half of a surrogate pair (\\u{code:04x} at character {error.start}), which is no text."
        ) from error


def _pack(documents: list[list[list[int]]], dtype: np.dtype) -> Documents:
    packed = Documents.of([sequence for document in documents for sequence in document], dtype)
    sequences = np.fromiter(map(len, documents), np.int32, len(documents))
    return Documents(packed.tokens, packed.sequence_lengths, sequences)
