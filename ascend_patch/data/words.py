"""Byte-pair encoding word by word: the ids of the whole text, from a table of words met before.

Tokenizers of the Llama family have no pre-tokenizer: to them a document is one long word, and the `tokenizers` library
starts from single characters every time. Yet no merge of theirs spans certain boundaries. Every piece that ever exists
is a character or the result of a merge, so a boundary before a character that no merge result holds anywhere but
in front is never crossed, and what is left of it does not change what is right of it. Texts are cut at these
boundaries, and each word is encoded once.

``▁`` stands for a space. Merges hold it inside of a piece only in runs, so a run of it starts a word as well. And most
of these tokenizers have no piece of letters and punctuation, so that words are cut there too.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

SPACE = "▁"
LONG_WORD = 48  # characters; longer ones hardly come again
LONG_TEXT = 1 << 20  # characters; its words are not held all at once
MOST_WORDS = 400_000  # some 60 MB
# Settings of a model with which the ids of a word depend on more than its characters.
CONTEXT_DEPENDENT = ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")

Normalize = Callable[[str], str]


class WordEncoder:
    """The ids of texts as bytes, equal to ``tokenizer.encode(text).ids`` of a `tokenizers.Tokenizer`.

    Made by :meth:`of`, which knows for which tokenizers this holds.
    """

    def __init__(self, tokenizer: Any, dtype: np.dtype, words: re.Pattern[str], normalize: Normalize) -> None:
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._words = words
        self._normalize = normalize
        added = sorted(
            (token.content for token in tokenizer.get_added_tokens_decoder().values()), key=len, reverse=True
        )
        self._added = re.compile("|".join(map(re.escape, added)) or "(?!)")
        self._prefix, self._suffix = self._template()
        self._table = _Table(tokenizer.model, dtype)

    @classmethod
    def of(cls, tokenizer: Any, dtype: np.dtype) -> "WordEncoder | None":
        """An encoder that gives ids of ``dtype``; None if ``tokenizer`` is not of the kind described above."""
        settings = json.loads(tokenizer.to_str())
        words, normalize = _words_of(settings), _normalize_of(settings)
        return None if words is None or normalize is None else cls(tokenizer, dtype, words, normalize)

    def encode(self, texts: Iterable[str], add_special_tokens: bool = True) -> list[bytes]:
        """The ids of each text."""
        prefix, suffix = (self._prefix, self._suffix) if add_special_tokens else (b"", b"")
        lookup = self._table.__getitem__
        encoded = []
        for text in texts:
            if not text or self._added.search(text):
                encoded.append(self._whole(text, add_special_tokens))
                continue
            normal = self._normalize(text)
            if len(normal) < LONG_TEXT:
                ids = b"".join(map(lookup, self._words.findall(normal)))
            else:
                ids = b"".join(lookup(match[0]) for match in self._words.finditer(normal))
            encoded.append(prefix + ids + suffix)
        return encoded

    def _whole(self, text: str, add_special_tokens: bool = True) -> bytes:
        return self._pack(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _pack(self, ids: Sequence[int]) -> bytes:
        return np.array(ids, self._dtype).tobytes()

    def _template(self) -> tuple[bytes, bytes]:
        """What the tokenizer puts before and after a text."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a").ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return self._pack(full[:start]), self._pack(full[start + len(bare) :])
        raise ValueError(f"The tokenizer makes {full} of what is {bare} without special tokens.")


class _Table(dict[str, bytes]):
    """Words and their ids; a word that is not there is encoded."""

    def __init__(self, model: Any, dtype: np.dtype) -> None:
        super().__init__()
        self._model = model
        self._dtype = dtype

    def __missing__(self, word: str) -> bytes:
        ids = np.array([token.id for token in self._model.tokenize(word)], self._dtype).tobytes()
        if len(word) <= LONG_WORD:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


def _words_of(settings: dict[str, Any]) -> re.Pattern[str] | None:
    """A pattern whose matches are the words of a normalized text; None if there is none that is always right."""
    model = settings["model"]
    if model["type"] != "BPE" or any(model.get(name) for name in CONTEXT_DEPENDENT):
        return None
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    byte_pieces = {f"<0x{value:02X}>" for value in range(256)}
    if not (model.get("byte_fallback") and byte_pieces <= model["vocab"].keys()) and (
        model.get("fuse_unk") or model.get("unk_token") is None
    ):
        return None  # unknown characters at a boundary would become one id, or vanish and let their neighbours meet
    if any(part in byte_pieces for pair in merges for part in pair):
        return None  # bytes of unknown characters would merge
    if any(_may_appear(token) for token in settings["added_tokens"]):
        return None
    return _pattern(["".join(pair) for pair in merges])


def _pattern(pieces: Sequence[str]) -> re.Pattern[str]:
    """Cut wherever none of the results of merges reaches across."""
    inside = {character for piece in pieces for character in piece[1:]}
    bare = [piece.lstrip(SPACE) for piece in pieces]
    if any(SPACE in piece for piece in bare):
        return re.compile(f"(?s).{_any(inside)}*")
    inside.discard(SPACE)
    letters = {character for piece in bare for character in piece if character.isalpha()}
    if letters and not any(0 < sum(map(letters.__contains__, piece)) < len(piece) for piece in bare):
        # No merge joins letters and other characters, so that words end at punctuation too.
        other = _any(letters | {SPACE}, "^")
        return re.compile(f"{SPACE}*(?:{_any(letters)}+|{other}{_any(inside - letters)}*)|{SPACE}+")
    return re.compile(f"(?s)(?:{SPACE}+|.){_any(inside)}*")


def _any(characters: set[str], sign: str = "") -> str:
    return f"[{sign}{re.escape(''.join(sorted(characters)))}]" if characters else "(?!)"


def _may_appear(added_token: dict[str, Any]) -> bool:
    """Whether a normalized text may hold the added token although the text itself does not."""
    content = added_token["content"]
    return added_token["normalized"] and (" " in content or SPACE in content)


def _normalize_of(settings: dict[str, Any]) -> Normalize | None:
    """The tokenizer's normalizer, and a pre-tokenizer that does not split, on a text that is not empty.

    None if they do something else than to replace strings and to put one in front.
    """
    normalizer, splitter = settings["normalizer"], settings["pre_tokenizer"]
    steps: list[Normalize] = []
    for part in normalizer.get("normalizers", [normalizer]) if normalizer else ():
        if part["type"] == "Prepend":
            steps.append(part["prepend"].__add__)
        elif part["type"] == "Replace" and "String" in part["pattern"]:
            steps.append(_replace(part["pattern"]["String"], part["content"]))
        else:
            return None
    if splitter:
        if splitter["type"] != "Metaspace" or splitter["split"] or splitter["replacement"] != SPACE:
            return None
        steps.append(_replace(" ", SPACE))
        if splitter["prepend_scheme"] != "never":
            steps.append(lambda text: text if text.startswith(SPACE) else SPACE + text)

    def normalize(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return normalize


def _replace(old: str, new: str) -> Normalize:
    return lambda text: text.replace(old, new)
