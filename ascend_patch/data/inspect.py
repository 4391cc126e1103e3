"""Look at prepared data: documents decoded, with what is learned marked.

    python tools/preprocess_data.py inspect PREFIX --tokenizer-name-or-path FOLDER --documents 3

On a terminal learned text is green and the rest is dim; elsewhere learned text stands between ⟦ and ⟧.
"""

import argparse
import logging
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ascend_patch.data.errors import DataError
from ascend_patch.data.stored import StoredConversations, is_stored
from ascend_patch.data.templates import Example
from ascend_patch.data.tokenize import load_tokenizer

OPEN, CLOSE = "⟦", "⟧"


def run(arguments: Sequence[str]) -> None:
    """The command; see the module's docstring.

    Raises:
        DataError: there is no such data, or it cannot be read.
    """
    parser = argparse.ArgumentParser(prog="preprocess_data inspect", description="Show documents of prepared data.")
    parser.add_argument("prefix", help="--output-prefix of the data, or the path of one dataset without .bin and .idx")
    parser.add_argument("--tokenizer-name-or-path", "--tokenizer-model", dest="tokenizer", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: 0)")
    options = parser.parse_args(arguments)
    tokenizer = load_tokenizer(options.tokenizer).hf
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime is found"
    with warnings.catch_warnings():  # of all that comes with upstream's reader
        warnings.simplefilter("ignore")
        show(options.prefix, tokenizer, range(options.first, options.first + options.documents))


def show(prefix: str, tokenizer: Any, numbers: range) -> None:
    """Print the documents with these numbers, as far as they exist."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for number, examples in zip(numbers, islice(_documents(prefix), numbers.start, numbers.stop), strict=False):
        tokens = sum(len(example.ids) for example in examples)
        learned = sum(int(example.learned.sum()) for example in examples)
        console.print(f"document {number}: {len(examples)} sequences, {tokens} tokens, {learned} learned", style="bold")
        for example in examples:
            text = Text()
            for part, is_learned in spans(example, tokenizer):
                if console.is_terminal:
                    text.append(part, style="green" if is_learned else "dim")
                else:
                    text.append(f"{OPEN}{part}{CLOSE}" if is_learned else part)
            console.print(text)


def spans(example: Example, tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """The text of consecutive tokens that are all learned or all not, and which of both they are.

    Together they are the decoded whole: a tokenizer decodes a token differently where a text begins.
    """
    ends = [*np.flatnonzero(np.diff(example.learned)) + 1, len(example.ids)]
    before = ""
    for end in ends:
        whole = tokenizer.decode(example.ids[:end].tolist(), clean_up_tokenization_spaces=False)
        yield whole[len(before) :], bool(example.learned[end - 1])
        before = whole


def _documents(prefix: str) -> Iterator[list[Example]]:
    if is_stored(prefix):
        stored = StoredConversations(prefix)
        return (stored[document] for document in range(len(stored)))
    for path in (prefix, f"{prefix}_text_document"):
        if Path(f"{path}.idx").is_file():
            return _plain(path)
    raise DataError(f"There is no prepared data under {prefix}: neither of instructions nor {prefix}.idx.")


def _plain(path: str) -> Iterator[list[Example]]:
    """Plain text, of which all is learned."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(path)
    bounds = dataset.document_indices
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        ids = [np.asarray(dataset[sequence]).astype(np.int32) for sequence in range(start, end)]
        yield [Example(sequence, np.ones(len(sequence), bool)) for sequence in ids]
