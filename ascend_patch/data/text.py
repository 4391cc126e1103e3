"""The handler of plain pretraining text: the same documents, byte for byte, as upstream's tools/preprocess_data.py."""

from collections.abc import Sequence
from itertools import chain, islice

import numpy as np

from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import Documents, Encoded, HandlerOptions, Record
from ascend_patch.data.records import kind_of
from ascend_patch.data.tokenize import Tokenizer

EMPTY = "empty documents, kept"


class TextHandler:
    """One document of each of ``options.json_keys`` for each record; a column for each key.

    The value is a string, or a list of strings: then each is tokenized for itself and becomes a sequence of the
    document. What gives no ids is no sequence; a document may be without any.
    """

    def __init__(self, tokenizer: Tokenizer, options: HandlerOptions) -> None:
        self._tokenizer = tokenizer
        self._end = np.array([tokenizer.eod], tokenizer.dtype).tobytes() if options.append_eod else b""
        self.columns = dict.fromkeys(options.json_keys, tokenizer.dtype)

    def prepare(self, record: Record) -> list[list[str]]:
        """The sequences of text of each key.

        Raises:
            DataError: a key is missing, or holds something that is no text.
        """
        return [texts_of(record, key) for key in self.columns]

    def encode(self, prepared: Sequence[list[list[str]]]) -> Encoded:
        """Tokenize all sequences of the batch in one call."""
        texts = [text for record in prepared for sequences in record for text in sequences]
        ids = iter(self._tokenizer.encode_bytes(texts))
        empty = 0
        documents: dict[str, list[list[bytes]]] = {key: [] for key in self.columns}
        for record in prepared:
            for key, sequences in zip(self.columns, record, strict=True):
                empty += not any(text.strip() for text in sequences)
                document = [sequence for sequence in islice(ids, len(sequences)) if sequence]
                if document:
                    document[-1] += self._end
                documents[key].append(document)
        columns = {key: _pack(documents[key], dtype) for key, dtype in self.columns.items()}
        return Encoded(columns, {EMPTY: empty} if empty else {})


def texts_of(record: Record, key: str) -> list[str]:
    """The string under ``key``, or the strings of the array there.

    Raises:
        DataError: there is something else, or nothing.
    """
    if key not in record:
        found = ", ".join(map(repr, record)) or "none"
        raise DataError(f"no {key!r} among its keys ({found}). Name the key of the text with --json-keys.")
    value = record[key]
    sequences = value if isinstance(value, list) else [value]
    for text in sequences:
        if not isinstance(text, str):
            found = f"an array with {kind_of(text)} in it" if sequences is value else kind_of(text)
            raise DataError(f"{key!r} holds {found}. Expected is a string, or an array of strings.")
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


def _pack(documents: list[list[bytes]], dtype: np.dtype) -> Documents:
    sequences = list(chain.from_iterable(documents))
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences)) // dtype.itemsize
    sizes = np.fromiter(map(len, documents), np.int32, len(documents))
    return Documents(np.frombuffer(b"".join(sequences), dtype), lengths.astype(np.int32), sizes)
