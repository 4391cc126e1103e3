"""What upstream's tools/preprocess_data.py writes, by upstream's own tokenizer and builder."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path


def write(
    lines: Iterable[str], prefix: Path, tokenizer: Path, library: str, keys: Sequence[str], append_eod: bool
) -> None:
    """``prefix``_{key}_document for each key: a document of each line, a sequence of each text with ids in it."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from megatron.core.tokenizers import MegatronTokenizer

    theirs = MegatronTokenizer.from_pretrained(tokenizer_path=str(tokenizer), metadata_path={"library": library})
    dtype = DType.optimal_dtype(theirs.vocab_size)
    builders = {key: IndexedDatasetBuilder(f"{prefix}_{key}_document.bin", dtype=dtype) for key in keys}
    for line in lines:
        for key, builder in builders.items():
            texts = json.loads(line)[key]
            sequences = [theirs.tokenize(text) for text in (texts if isinstance(texts, list) else [texts])]
            sequences = [list(ids) for ids in sequences if ids]
            if sequences and append_eod:
                sequences[-1].append(theirs.eod)
            builder.add_document([id for ids in sequences for id in ids], [len(ids) for ids in sequences])
    for key, builder in builders.items():
        builder.finalize(f"{prefix}_{key}_document.idx")


def read(prefix: Path | str) -> list[list[int]]:
    """The sequences of a dataset, as upstream reads them."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    return [dataset[index].tolist() for index in range(len(dataset))]
