"""Prepared instruction data, written by upstream's own builder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ascend_patch.data.instruction import IDS, LABELS
from ascend_patch.data.stored import column_prefix
from ascend_patch.data.templates import Example


def example(ids: Sequence[int], learned: str) -> Example:
    """``learned`` has + for each learned token, - for the others."""
    return Example(np.array(ids, np.int32), np.array([sign == "+" for sign in learned]))


def write(prefix: Path, documents: Sequence[Sequence[Example]]) -> str:
    """Both columns; returns the prefix as ``--data-path`` takes it."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    for column, dtype in ((IDS, np.uint16), (LABELS, np.int32)):
        path = column_prefix(str(prefix), column)
        builder = IndexedDatasetBuilder(f"{path}.bin", dtype=dtype)
        for document in documents:
            for one in document:
                builder.add_item(torch.from_numpy(one.ids if column == IDS else one.labels))
            builder.end_document()
        builder.finalize(f"{path}.idx")
    return str(prefix)
