"""Instruction data as ``tools/preprocess_data.py`` stores it, read for training."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ascend_patch.data.errors import DataError
from ascend_patch.data.instruction import IDS, LABELS
from ascend_patch.data.samples import positions
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

    Raises:
        DataError: files are missing, or are not two columns of one dataset.
    """

    def __init__(self, prefix: str, mmap: bool = True) -> None:
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        if not is_stored(prefix):
            raise DataError(
                f"{column_prefix(prefix, IDS)}.idx is missing: there is no instruction data under {prefix}. Prepare it "
                "with tools/preprocess_data.py --handler-name GeneralInstructionHandler (or another one of "
                "instructions) and --output-prefix, and give that prefix to --data-path."
            )
        self.prefix = prefix
        self._ids, self._labels = (IndexedDataset(column_prefix(prefix, c), mmap=mmap) for c in (IDS, LABELS))
        for name in ("sequence_lengths", "document_indices"):
            if not np.array_equal(getattr(self._ids, name), getattr(self._labels, name)):
                raise DataError(
                    f"{column_prefix(prefix, IDS)} and {column_prefix(prefix, LABELS)} have different {name}: they "
                    f"were not written together. {_AGAIN}"
                )

    def __len__(self) -> int:
        return len(self._ids.document_indices) - 1

    def __getitem__(self, document: int) -> list[Example]:
        """The conversations of a document.

        Raises:
            DataError: a label is neither ignored nor the token itself, so that the columns are not a pair.
        """
        return [self._example(sequence) for sequence in self._sequences(document)]

    def __iter__(self) -> Iterator[list[Example]]:
        return (self[document] for document in range(len(self)))

    def usable(self, sequence_length: int) -> tuple[np.ndarray, int]:
        """Which documents can be trained on, and how many of them are cut for it.

        Only documents that are too long are read.

        Returns:
            Their numbers, without those whose answers all lie beyond ``sequence_length``; and the number of those cut.

        Raises:
            DataError: a document of several conversations is too long.
        """
        taken = np.maximum(np.asarray(self._ids.sequence_lengths, np.int64) - 1, 0)
        bounds = np.asarray(self._ids.document_indices)
        ends = np.concatenate([[0], np.cumsum(taken)])[bounds]
        too_long = np.flatnonzero(np.diff(ends) > sequence_length)
        lost = []
        for document in too_long:
            examples = self[document]
            if len(examples) > 1:
                size = sum(positions(len(example.ids)) for example in examples)
                raise DataError(
                    f"Document {document} of {self.prefix} is {len(examples)} conversations packed into {size} "
                    f"positions, more than --seq-length {sequence_length}. Train with --seq-length {size} or more, or "
                    f"prepare the data again with --pack --seq-length {sequence_length}."
                )
            if not examples[0].learned[1 : sequence_length + 1].any():
                lost.append(document)
        return np.setdiff1d(np.arange(len(self)), lost), len(too_long) - len(lost)

    def _sequences(self, document: int) -> range:
        return range(int(self._ids.document_indices[document]), int(self._ids.document_indices[document + 1]))

    def _example(self, sequence: int) -> Example:
        ids, labels = (np.asarray(column[sequence]).astype(np.int32) for column in (self._ids, self._labels))
        learned = labels != IGNORED
        if not np.array_equal(ids[learned], labels[learned]):
            raise DataError(
                f"Sequence {sequence} of {column_prefix(self.prefix, LABELS)} has labels that are neither {IGNORED} "
                f"nor the token of {column_prefix(self.prefix, IDS)}: they were not written together. {_AGAIN}"
            )
        return Example(ids, learned)
