"""Handlers of instruction data: one dataset of token ids and one of labels, sequence for sequence.

A sequence is one conversation. A document is one training sample: one conversation (padded when it is trained on) or,
with ``--pack``, several that together fit into ``--seq-length``. The datasets are read by
``--is-instruction-dataset`` and ``--sft`` (:mod:`ascend_patch.features.instruction`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ascend_patch.data.conversations import Conversation, from_instruction, from_messages, from_sharegpt
from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import Documents, Encoded, HandlerOptions
from ascend_patch.data.packing import pack
from ascend_patch.data.samples import padded, positions
from ascend_patch.data.templates import Example, create_template
from ascend_patch.data.tokenize import Tokenizer

#: The two columns, by the names ModelLink gave them.
IDS, LABELS = "packed_input_ids", "packed_labels"

CUT = "conversations cut at --seq-length"
WITHOUT_ANSWER = "conversations left out, as all of their answers lie beyond --seq-length"


class InstructionHandler:
    """Conversations of one format, in one template.

    Args:
        read: what makes a conversation of a record.
        options: with ``seq_length``, longer conversations are cut; ``pack`` needs it, and leaves room for the padding
            of each conversation by ``pad_to_multiple_of``.

    Raises:
        DataError: the options contradict each other, or the tokenizer lacks what the template needs.
    """

    def __init__(
        self, read: Callable[[Mapping[str, Any]], Conversation], tokenizer: Tokenizer, options: HandlerOptions
    ) -> None:
        if options.pack and options.seq_length is None:
            raise DataError("--pack needs --seq-length, the length of the samples to fill. Add it.")
        self._longest = None if options.seq_length is None else options.seq_length + 1
        self._capacity = options.seq_length if options.pack else None
        self._multiple = options.pad_to_multiple_of
        if self._multiple > 1 and (self._capacity is None or self._capacity % self._multiple):
            raise DataError(
                f"--pad-to-multiple-of {self._multiple} leaves room for padding in packed samples: it goes with --pack "
                "and a --seq-length that is a multiple of it. Add or change these, or leave it out."
            )
        self._read = read
        self._template = create_template(options.prompt_template, tokenizer)
        self.columns = {IDS: tokenizer.dtype, LABELS: np.dtype(np.int32)}

    def prepare(self, record: Mapping[str, Any]) -> Conversation:
        """The conversation, checked."""
        conversation = self._read(record)
        self._template.check(conversation)
        return conversation

    def encode(self, prepared: Sequence[Conversation]) -> Encoded:
        """Tokenize the conversations of a batch; with ``pack``, samples are filled from this batch."""
        notes: Counter[str] = Counter()
        whole = self._template.encode(prepared)
        cut = [Example(example.ids[: self._longest], example.learned[: self._longest]) for example in whole]
        examples = [example for example in cut if example.learned[1:].any()]
        notes[CUT] = sum(len(a.ids) > len(b.ids) for a, b in zip(whole, cut, strict=True))
        notes[WITHOUT_ANSWER] = len(cut) - len(examples)
        documents = [[index] for index in range(len(examples))]
        if self._capacity is not None:
            taken = [padded(positions(len(example.ids)), self._multiple) for example in examples]
            documents = pack(taken, self._capacity)
        ordered = [examples[index] for document in documents for index in document]
        lengths = np.array([len(example.ids) for example in ordered], np.int32)
        sizes = np.array([len(document) for document in documents], np.int32)
        values = {IDS: [example.ids for example in ordered], LABELS: [example.labels for example in ordered]}
        columns = {
            name: Documents(np.concatenate([np.empty(0, np.int32), *values[name]]).astype(dtype), lengths, sizes)
            for name, dtype in self.columns.items()
        }
        return Encoded(columns, +notes)


#: Alpaca's instruction, input and output.
alpaca = partial(InstructionHandler, from_instruction)
#: ShareGPT's conversations.
sharegpt = partial(InstructionHandler, from_sharegpt)
#: OpenAI's messages.
openai = partial(InstructionHandler, from_messages)
