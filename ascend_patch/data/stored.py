"""Instruction data as ``tools/preprocess_data.py`` stores it, read for training."""

from pathlib import Path

import numpy as np

from ascend_patch.data.errors import DataError
from ascend_patch.data.instruction import IDS, LABELS
from ascend_patch.data.templates import IGNORED, Example

_AGAIN = "Prepare the data again (tools/preprocess_data.py)."


def is_stored(prefix: str) -> bool:
    """Whether there is instruction data under this prefix."""
    return Path(f"{column_prefix(prefix, IDS)}.idx").is_file()


def column_prefix(prefix: str, column: str) -> str:
    """Where a column is, without .bin and .idx."""
    return f"{prefix}_{column}_document"


class StoredConversations:
    """The documents under a prefix: a list of conversations for each.

    Args:
        sequence_length: positions of the samples to be made. Documents whose answers all lie beyond are left out.

    Attributes:
        cut: documents that are longer than ``sequence_length``.
        left_out: documents that are left out.

    Raises:
        DataError: files are missing, or are not two columns of one dataset; a document of several conversations is
            too long.
    """

    def __init__(self, prefix: str, sequence_length: int | None = None, mmap: bool = True) -> None:
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        if not is_stored(prefix):
            raise DataError(
                f"{column_prefix(prefix, IDS)}.idx is missing: there is no instruction data under {prefix}. Prepare it "
                "with tools/preprocess_data.py --handler-name GeneralInstructionHandler (or another one of "
                "instructions) and --output-prefix, and give that prefix to --data-path."
            )
        self._prefix = prefix
        self._ids, self._labels = (IndexedDataset(column_prefix(prefix, c), mmap=mmap) for c in (IDS, LABELS))
        for name in ("sequence_lengths", "document_indices"):
            if not np.array_equal(getattr(self._ids, name), getattr(self._labels, name)):
                raise DataError(
                    f"{column_prefix(prefix, IDS)} and {column_prefix(prefix, LABELS)} have different {name}: they "
                    f"were not written together. {_AGAIN}"
                )
        self._documents = np.arange(len(self._ids.document_indices) - 1)
        self.cut = self.left_out = 0
        if sequence_length is not None:
            self._fit(sequence_length)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> list[Example]:
        """The conversations of a document.

        Raises:
            DataError: a label is neither ignored nor the token itself, so that the columns are not a pair.
        """
        if index >= len(self):
            raise IndexError(f"{index} of {len(self)} documents")
        return self._read(int(self._documents[index]))

    def _fit(self, sequence_length: int) -> None:
        """Only documents that are too long are read."""
        positions_before = np.cumsum([0, *np.maximum(np.asarray(self._ids.sequence_lengths, np.int64) - 1, 0)])
        ends = positions_before[np.asarray(self._ids.document_indices)]
        too_long = np.flatnonzero(np.diff(ends) > sequence_length)
        lost = []
        for document in too_long.tolist():
            examples = self._read(document)
            if len(examples) > 1:
                size = ends[document + 1] - ends[document]
                raise DataError(
                    f"Document {document} of {self._prefix} is {len(examples)} conversations packed into {size} "
                    f"positions, more than --seq-length {sequence_length}. Train with --seq-length {size} or more, or "
                    f"prepare the data again with --pack --seq-length {sequence_length}."
                )
            if not examples[0].learned[1 : sequence_length + 1].any():
                lost.append(document)
        self._documents = np.setdiff1d(self._documents, lost)
        self.cut, self.left_out = len(too_long), len(lost)

    def _read(self, document: int) -> list[Example]:
        first, end = self._ids.document_indices[document : document + 2].tolist()
        return [self._example(sequence) for sequence in range(first, end)]

    def _example(self, sequence: int) -> Example:
        ids, labels = (np.asarray(column[sequence]).astype(np.int32) for column in (self._ids, self._labels))
        learned = labels != IGNORED
        if not np.array_equal(ids[learned], labels[learned]):
            raise DataError(
                f"Sequence {sequence} of {column_prefix(self._prefix, LABELS)} has labels that are neither {IGNORED} "
                f"nor the token of {column_prefix(self._prefix, IDS)}: they were not written together. {_AGAIN}"
            )
        return Example(ids, learned)
