"""Instruction data as ``tools/preprocess_data.py`` stores it, read for training."""

from pathlib import Path

import numpy as np

from ascend_patch.data.errors import DataError
from ascend_patch.data.instruction import IDS, LABELS
from ascend_patch.data.samples import padded
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
        multiple: each conversation will be padded to a multiple of so many positions.

    Attributes:
        cut: documents that are longer than ``sequence_length``.
        left_out: documents that are left out.

    Raises:
        DataError: files are missing, or are not two columns of one dataset; a document of several conversations is
            too long.
    """

    def __init__(self, prefix: str, sequence_length: int | None = None, mmap: bool = True, multiple: int = 1) -> None:
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
            self._fit(sequence_length, multiple)

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

    def _fit(self, sequence_length: int, multiple: int) -> None:
        """Only documents that are too long are read."""
        taken = padded(np.maximum(np.asarray(self._ids.sequence_lengths, np.int64) - 1, 0), multiple)
        boundaries = np.asarray(self._ids.document_indices)
        sizes = np.diff(np.cumsum([0, *taken])[boundaries])
        too_long = np.flatnonzero(sizes > sequence_length)
        packed = too_long[np.diff(boundaries)[too_long] > 1]
        if len(packed):
            largest = int(packed[np.argmax(sizes[packed])])
            padding, room = "", ""
            if multiple > 1:
                padding = f", each padded to a multiple of {multiple} for --context-parallel-size"
                room = f" --pad-to-multiple-of {multiple}"
            raise DataError(
                f"Document {largest} of {self._prefix} is {len(self._read(largest))} conversations packed into "
                f"{sizes[largest]} positions, more than --seq-length {sequence_length}{padding}. Train with "
                f"--seq-length {sizes[largest]} or more, or prepare the data again with --pack --seq-length "
                f"{sequence_length}{room}."
            )
        lost = [i for i in too_long.tolist() if not self._read(i)[0].learned[1 : sequence_length + 1].any()]
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
