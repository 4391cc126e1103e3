"""Tokenizers as data preparation needs them: many texts at once, the ids of upstream's own wrappers."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ascend_patch.data.errors import DataError
from ascend_patch.data.words import WordEncoder

logger = logging.getLogger(__name__)

HUGGING_FACE = ("PretrainedFromHF", "HuggingFaceTokenizer")
SENTENCE_PIECE = ("Llama2Tokenizer", "SentencePieceTokenizer", "GPTSentencePieceTokenizer")
TOKENIZER_TYPES = (*HUGGING_FACE, *SENTENCE_PIECE)
#: One of these has to be in a tokenizer's folder.
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")

# What tokenizers disagree about. A faster way to the ids is taken only if it gives the same for each.
PROBES = (
    "",
    " ",
    "a",
    "  two  spaces,   three ",
    "tabs\tand\r\nnew\n\n\nlines\n",
    "To be, or not to be: that is the question. 1234567890",
    "▁▁literal ▁ marks▁",
    "Füße, naïve, Ωmega, ñ, е́, ½, ﬁ, ｆｕｌｌ",
    "二人で 北京大学。，、！你好\u3000世界",
    "🙂 👩‍👩‍👧‍👦 \U0001f1e8\U0001f1ed \x00\x01\x7f\u200b\ufeff\u0301",
    "<s> </s>[INST] x [/INST]<unk><0x0A><pad><|endoftext|>",
    "def f(x):\n    return {'a': [x ** 2, x != 3]}  # ok\n",
)


class Tokenizer(Protocol):
    """What handlers use of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype upstream stores ids of this vocabulary in: see :func:`dtype_of`."""

    @property
    def eod(self) -> int:
        """The id that ends a document.

        Raises:
            DataError: the tokenizer has none.
        """

    @property
    def hf(self) -> Any:
        """The transformers tokenizer, for chat templates and decoding.

        Raises:
            DataError: it is none of transformers.
        """

    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """The ids of each text, those of ``tokenizer(text)``: with the begin-of-sequence token if it adds one."""

    def encode_bytes(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[bytes]:
        """The same, as the bytes of arrays of :attr:`dtype`; faster."""


def dtype_of(vocab_size: int) -> np.dtype:
    """The dtype upstream stores ids of a vocabulary in: uint16, or int32 from 65500 ids on."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def load_tokenizer(path: Path, kind: str = HUGGING_FACE[0], use_fast: bool = True) -> Tokenizer:
    """The tokenizer at ``path``; no hub is asked and no code of the folder is run.

    Args:
        path: a folder that transformers reads; for the types of :data:`SENTENCE_PIECE` a tokenizer.model, or its
            folder.
        kind: one of :data:`TOKENIZER_TYPES`.
        use_fast: of transformers: whether to prefer a tokenizer of the `tokenizers` library.

    Raises:
        DataError: it is not there, or cannot be read.
    """
    if kind in SENTENCE_PIECE:
        return SentencePieceTokenizer(path)
    if kind in HUGGING_FACE:
        return HuggingFaceTokenizer(path, use_fast)
    raise DataError(f"--tokenizer-type {kind}: there is no such type. There are {', '.join(TOKENIZER_TYPES)}.")


def fingerprint(path: Path) -> str:
    """A hash of a tokenizer's files: what decides about the ids."""
    names = ("*token*", "vocab*", "merges*", "tekken*", "config.json")
    files = [path] if path.is_file() else sorted({file for name in names for file in path.glob(name)})
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


class HuggingFaceTokenizer:
    """A tokenizer of transformers: the ids and the end-of-document id of upstream's HuggingFaceTokenizer.

    Args:
        folder: what `save_pretrained` wrote, or a model's folder.
        use_fast: whether to prefer a tokenizer of the `tokenizers` library; transformers 5 always does.

    Raises:
        DataError: the folder is not there, or transformers cannot read it.
    """

    def __init__(self, folder: Path, use_fast: bool = True) -> None:
        # Without a vocabulary transformers would return an almost empty tokenizer without a word.
        if not any((folder / name).is_file() for name in VOCABULARIES):
            raise DataError(f"{folder} is no tokenizer folder: it holds none of {', '.join(VOCABULARIES)}.")
        from transformers import AutoTokenizer

        try:
            self.hf = AutoTokenizer.from_pretrained(str(folder), use_fast=use_fast, local_files_only=True)
        except Exception as error:  # transformers raises whatever the file's content leads it to
            raise DataError(f"{folder}: transformers cannot read this tokenizer ({_first_line(error)}).") from error
        # As upstream's wrapper does: it makes them special tokens if they were none.
        if self.hf.sep_token is None and self.hf.eos_token:
            self.hf.add_special_tokens({"sep_token": self.hf.eos_token})
        if self.hf.cls_token is None and self.hf.bos_token:
            self.hf.add_special_tokens({"cls_token": self.hf.bos_token})
        self.vocab_size = len(self.hf)
        self.dtype = dtype_of(self.vocab_size)
        self._folder = folder
        self._backend = self.hf.backend_tokenizer if self.hf.is_fast else None
        self._words = self._word_encoder()
        _warn_of_a_rebuilt_vocabulary(folder, self)

    @property
    def eod(self) -> int:
        """The id of the end-of-sequence token."""
        name = self.hf.eos_token or self.hf.sep_token
        if name is None:
            raise DataError(f"{self._folder}: the tokenizer names no eos_token, so no document can be ended with it.")
        return self.hf.convert_tokens_to_ids(name)

    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """See :meth:`Tokenizer.encode`."""
        return [np.frombuffer(ids, self.dtype).tolist() for ids in self.encode_bytes(texts, add_special_tokens)]

    def encode_bytes(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[bytes]:
        """See :meth:`Tokenizer.encode_bytes`."""
        if self._words is not None:
            return self._words.encode(texts, add_special_tokens)
        return [np.array(ids, self.dtype).tobytes() for ids in self._plain(texts, add_special_tokens)]

    def _plain(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        if self._backend is None:
            return self.hf(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        self._backend.no_truncation()  # a tokenizer.json may ask for both; upstream's wrapper does not
        self._backend.no_padding()
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def _word_encoder(self) -> WordEncoder | None:
        """The fast way to the ids, if it is one for this tokenizer."""
        if self._backend is None:
            return None
        expected = [self.hf(probe, verbose=False)["input_ids"] for probe in PROBES]
        if self._plain(PROBES, True) != expected:
            self._backend = None  # a class of transformers that does more than its backend
            return None
        words = WordEncoder.of(self._backend, self.dtype)
        if words and words.encode(PROBES) == [np.array(ids, self.dtype).tobytes() for ids in expected]:
            return words
        return None


class SentencePieceTokenizer:
    """A SentencePiece model: the ids of upstream's Llama2Tokenizer, without a begin-of-sequence token.

    Raises:
        DataError: there is no such file, or it is no model.
    """

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        path = path / "tokenizer.model" if path.is_dir() else path
        if not path.is_file():
            raise DataError(f"{path} is not there. This type of tokenizer is a SentencePiece model, tokenizer.model.")
        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except RuntimeError as error:
            raise DataError(f"{path} is no SentencePiece model ({_first_line(error)}).") from error
        self.vocab_size = self._model.get_piece_size()
        self.dtype = dtype_of(self.vocab_size)
        self.eod = self._model.eos_id()
        self._path = path

    @property
    def hf(self) -> Any:
        """There is none."""
        raise DataError(f"{self._path}: chat templates need a tokenizer of --tokenizer-type {HUGGING_FACE[0]}.")

    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """See :meth:`Tokenizer.encode`; there are no special tokens to add."""
        return self._model.encode(list(texts), num_threads=1)

    def encode_bytes(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[bytes]:
        """See :meth:`Tokenizer.encode_bytes`."""
        return [np.array(ids, self.dtype).tobytes() for ids in self.encode(texts)]


def _warn_of_a_rebuilt_vocabulary(folder: Path, tokenizer: HuggingFaceTokenizer) -> None:
    """transformers rebuilds a tokenizer from a bare tokenizer.model, not always with the ids of SentencePiece."""
    if (folder / "tokenizer.json").is_file() or not (folder / "tokenizer.model").is_file():
        return
    texts = [probe for probe in PROBES if probe and "<" not in probe]
    expected = SentencePieceTokenizer(folder).encode(texts)
    if tokenizer.encode(texts, add_special_tokens=False) != expected:
        logger.warning(
            "%s holds no tokenizer.json, and what transformers makes of its tokenizer.model gives other ids than "
            "SentencePiece does, for runs of spaces and the like. Add the model's tokenizer.json.",
            folder,
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
