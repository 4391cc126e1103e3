"""Handlers: what a record means, and which token ids it becomes.

A handler takes records (mappings, such as one line of a .jsonl file) and gives documents for one or more *columns*.
Each column becomes an indexed dataset of its own, ``PREFIX_{column}_document.{bin,idx}``. Handlers work in worker
processes on batches of consecutive records, the same batches whatever the number of workers, and must give the same
documents for the same batch.

To add one: write the class, give it a line in :data:`HANDLERS`.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ascend_patch.data.errors import DataError
from ascend_patch.data.tokenize import Tokenizer

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Documents:
    """Documents of one column, packed end to end; each is one or more sequences.

    Attributes:
        tokens: ``[T]``, of the column's dtype, all ids in order.
        sequence_lengths: ``[S]`` int32, ids of each sequence.
        document_sequences: ``[D]`` int32, sequences of each document.
    """

    tokens: np.ndarray
    sequence_lengths: np.ndarray
    document_sequences: np.ndarray

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]], dtype: np.dtype) -> "Documents":
        """Documents of one sequence each."""
        lengths = np.fromiter(map(len, documents), np.int32, len(documents))
        tokens = np.empty(int(lengths.sum(dtype=np.int64)), dtype)
        end = 0
        for ids in documents:
            start, end = end, end + len(ids)
            tokens[start:end] = ids
        return cls(tokens, lengths, np.ones(len(documents), np.int32))


@dataclass(frozen=True)
class Encoded:
    """What a handler made of a batch.

    Attributes:
        columns: documents by the name of the column, one entry for each of :attr:`Handler.columns`.
        notes: how often something happened that the user should know of at the end, for example
            ``{"empty documents": 3}``; summed over all batches.
    """

    columns: Mapping[str, Documents]
    notes: Mapping[str, int] = field(default_factory=dict)


class Handler(Protocol):
    """What every handler has."""

    @property
    def columns(self) -> Mapping[str, np.dtype]:
        """The datasets it writes: name of the column -> dtype of its ids (uint16 or int32)."""

    def prepare(self, record: Record) -> Any:
        """Check one record and take from it what :meth:`encode` needs; cheap, no tokenizing.

        Raises:
            DataError: the record is not what the handler reads. The message names the key and says what is
                expected; the caller adds file and line, and with ``--on-error skip`` leaves the record out.
        """

    def encode(self, prepared: Sequence[Any]) -> Encoded:
        """Tokenize a batch of what :meth:`prepare` returned."""


@dataclass(frozen=True)
class HandlerOptions:
    """The options of the command line that handlers read; each takes what concerns it."""

    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    seq_length: int | None = None
    pack: bool = False
    pad_to_multiple_of: int = 1
    prompt_template: str = "mistral"


# Name on the command line -> "module:factory", a callable (tokenizer, options) -> Handler. Imported when chosen.
DEFAULT_HANDLER = "GeneralPretrainHandler"
HANDLERS: dict[str, str] = {
    DEFAULT_HANDLER: "ascend_patch.data.text:TextHandler",
    "GeneralInstructionHandler": "ascend_patch.data.instruction:alpaca",
    "SharegptStyleInstructionHandler": "ascend_patch.data.instruction:sharegpt",
    "OpenAIStyleInstructionHandler": "ascend_patch.data.instruction:openai",
}


def create_handler(name: str, tokenizer: Tokenizer, options: HandlerOptions) -> Handler:
    """The handler called ``name``.

    Raises:
        DataError: there is none, or the options do not fit it.
    """
    if name not in HANDLERS:
        raise DataError(f"--handler-name {name}: there is no such handler. There are {', '.join(HANDLERS)}.")
    module, _, factory = HANDLERS[name].partition(":")
    return getattr(importlib.import_module(module), factory)(tokenizer, options)
