"""What upstream's tools/preprocess_data.py does, with the classes of the installed Megatron-LM.

For machines without a checkout, as the wheel does not carry the script: a pool of processes, each with a tokenizer,
that take the lines of the file 32 at a time and tokenize them one by one; the parent adds the documents.
"""

import json
import multiprocessing
import sys
from typing import Any

_TASKS = 32  # lines that upstream hands to a process at once
_tokenizer: Any


def main(path: str, prefix: str, tokenizer: str, workers: str) -> None:
    """Write ``prefix``_text_document of the file at ``path``, with an end-of-document id behind each document."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    vocabulary = _load(tokenizer).vocab_size
    with open(path, encoding="utf-8") as lines, multiprocessing.Pool(int(workers), _start, (tokenizer,)) as pool:
        builder = IndexedDatasetBuilder(f"{prefix}_text_document.bin", dtype=DType.optimal_dtype(vocabulary))
        for ids in pool.imap(_encode, lines, _TASKS):
            builder.add_document(ids, [len(ids)])
        builder.finalize(f"{prefix}_text_document.idx")


def _load(path: str) -> Any:
    from megatron.core.tokenizers import MegatronTokenizer

    return MegatronTokenizer.from_pretrained(tokenizer_path=path, metadata_path={"library": "huggingface"})


def _start(path: str) -> None:
    global _tokenizer
    _tokenizer = _load(path)


def _encode(line: str) -> list[int]:
    return [*_tokenizer.tokenize(json.loads(line)["text"]), _tokenizer.eod]


if __name__ == "__main__":
    main(*sys.argv[1:])
