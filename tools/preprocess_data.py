"""Turn text into Megatron's indexed dataset: a .bin file of token ids and an .idx file of document lengths.

    python tools/preprocess_data.py --input my.jsonl --output-prefix data/my \\
        --tokenizer-name-or-path FOLDER --append-eod

reads one JSON object a line, each with the document under "text", and writes data/my_text_document.bin and
.idx through upstream's own indexed_dataset.IndexedDatasetBuilder. ``--data-path data/my_text_document`` is then what
pretrain_gpt.py wants. The split into training, validation and test documents is not made here but by
upstream's ``--split``.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import batched
from pathlib import Path

DOCUMENTS_PER_BATCH = 256  # tokenized in one call, on all cores


class DataError(Exception):
    """The input cannot be turned into a dataset; the message says where and what to do."""


@dataclass(frozen=True)
class Dataset:
    """What :func:`write_dataset` wrote. ``prefix`` is what ``--data-path`` takes."""

    prefix: Path
    documents: int
    tokens: int


def read_documents(path: Path, key: str = "text") -> Iterator[str]:
    """Yield the text of every line of a .jsonl file; empty lines and empty texts are left out.

    Raises:
        DataError: the file cannot be read, or a line of it is not an object with a string under ``key``.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    text = _text_of(line, key, f"{path}, line {number}")
                    if text.strip():
                        yield text
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise DataError(f"{path} is not UTF-8 text ({where}). Convert it first.") from error


def _text_of(line: str, key: str, where: str) -> str:
    example = f'Each line must be one JSON object such as {{"{key}": "..."}}.'
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}). {example}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {type(record).__name__}, not an object. {example}")
    if key not in record:
        found = ", ".join(map(repr, record)) or "none"
        raise DataError(f"{where}: no {key!r} among its keys ({found}). {example}")
    if not isinstance(record[key], str):
        raise DataError(f"{where}: {key!r} holds a {type(record[key]).__name__}, not a string. {example}")
    return record[key]


def load_tokenizer(folder: Path):
    """The Hugging Face tokenizer of a local folder; no hub is asked.

    Raises:
        DataError: the folder is not there, or holds neither tokenizer.model nor tokenizer.json
            (transformers would return an almost empty tokenizer without a word).
    """
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise DataError(f"{folder} is no tokenizer folder: it holds neither tokenizer.model nor tokenizer.json.")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def write_dataset(documents: Iterable[str], tokenizer, prefix: Path, append_eod: bool = True) -> Dataset:
    """Tokenize ``documents`` and write ``prefix``.bin and .idx, both complete or not there.

    The ids are those of ``tokenizer(text)``, with the begin-of-sequence token where the tokenizer adds one,
    and with ``append_eod`` the end-of-sequence token: upstream's own preprocessing writes the same.

    Raises:
        DataError: there is not a single document with text.
    """
    import torch

    indexed_dataset = _import_indexed_dataset()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    unfinished = str(prefix.with_name(f"{prefix.name}.unfinished.{os.getpid()}"))
    count = tokens = 0
    try:
        builder = indexed_dataset.IndexedDatasetBuilder(
            indexed_dataset.get_bin_path(unfinished), dtype=indexed_dataset.DType.optimal_dtype(len(tokenizer))
        )
        for batch in batched(documents, DOCUMENTS_PER_BATCH):
            for ids in tokenizer(list(batch), verbose=False)["input_ids"]:
                if append_eod:
                    ids = [*ids, tokenizer.eos_token_id]
                builder.add_document(torch.tensor(ids), [len(ids)])
                count += 1
                tokens += len(ids)
        if count == 0:
            raise DataError("There is no text: the input holds no document that is not empty.")
        builder.finalize(indexed_dataset.get_idx_path(unfinished))
        # An .idx never stands beside a .bin it does not belong to.
        Path(indexed_dataset.get_idx_path(str(prefix))).unlink(missing_ok=True)
        os.replace(indexed_dataset.get_bin_path(unfinished), indexed_dataset.get_bin_path(str(prefix)))
        os.replace(indexed_dataset.get_idx_path(unfinished), indexed_dataset.get_idx_path(str(prefix)))
    finally:
        for path in (indexed_dataset.get_bin_path(unfinished), indexed_dataset.get_idx_path(unfinished)):
            Path(path).unlink(missing_ok=True)
    return Dataset(prefix, count, tokens)


def _import_indexed_dataset():
    """Upstream's module, without the warnings of everything that comes with it: nothing of that is used here."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime is found"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Turn .jsonl text into Megatron's .bin/.idx files.")
    parser.add_argument("--input", type=Path, nargs="+", required=True, help=".jsonl files")
    parser.add_argument("--output-prefix", type=Path, required=True, help="up to _KEY_document.bin")
    parser.add_argument("--tokenizer-name-or-path", type=Path, required=True, help="a local folder")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="one dataset for each")
    parser.add_argument("--append-eod", action="store_true", help="end each document with its token")
    options = parser.parse_args(arguments)
    try:
        tokenizer = load_tokenizer(options.tokenizer_name_or_path)
        for key in options.json_keys:
            documents = (text for path in options.input for text in read_documents(path, key))
            prefix = options.output_prefix.with_name(f"{options.output_prefix.name}_{key}_document")
            dataset = write_dataset(documents, tokenizer, prefix, options.append_eod)
            print(f"{dataset.prefix}: {dataset.documents} documents, {dataset.tokens} tokens")
    except DataError as error:
        sys.exit(f"preprocess_data: {error}")


if __name__ == "__main__":
    main()
