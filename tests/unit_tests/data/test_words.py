"""Word by word gives the ids of the whole: for every tokenizer that is said to allow it, on every text."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel

from ascend_patch.data import words
from ascend_patch.data.words import WordEncoder

UINT16 = np.dtype(np.uint16)
ALPHABET = list("abehiost  ,.'\n\r\tTqé你▁<>/s🙂\u0301\x00") + ["the ", "    ", "<s>", "</s>", "<unk>", " '", "<0x0A>"]
texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(ALPHABET), max_size=40).map("".join))


@pytest.fixture(scope="module")
def llama(tokenizer_folder) -> Tokenizer:
    """A normalizer puts ▁ in place of spaces and in front."""
    return Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def metaspace(llama) -> Tokenizer:
    """A pre-tokenizer does, as transformers 5 has it for Llama."""
    tokenizer = Tokenizer.from_str(llama.to_str())
    tokenizer.normalizer = None  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)  # type: ignore[assignment]
    return tokenizer


@pytest.fixture(scope="module")
def glued(llama) -> Tokenizer:
    """Merges join letters and punctuation."""
    settings = json.loads(llama.to_str())
    for piece in ("e,", "'t"):
        settings["model"]["vocab"][piece] = len(settings["model"]["vocab"])
        settings["model"]["merges"].insert(0, list(piece))
    return Tokenizer.from_str(json.dumps(settings))


@pytest.fixture(scope="module", params=["llama", "metaspace", "glued"])
def tokenizer(request, llama, metaspace, glued) -> Tokenizer:
    return {"llama": llama, "metaspace": metaspace, "glued": glued}[request.param]


@pytest.fixture(scope="module")
def encoder(tokenizer) -> WordEncoder:
    encoder = WordEncoder.of(tokenizer, UINT16)
    assert encoder is not None
    return encoder


def ids_of(encoder: WordEncoder, text: str, add_special_tokens: bool = True) -> list[int]:
    (encoded,) = encoder.encode([text], add_special_tokens)
    return np.frombuffer(encoded, UINT16).tolist()


@settings(deadline=None, max_examples=60)
@given(text=texts, add_special_tokens=st.booleans())
def test_ids_are_those_of_the_whole_text(tokenizer, encoder, text, add_special_tokens):
    expected = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    assert ids_of(encoder, text, add_special_tokens) == expected


def test_words_are_short(llama, metaspace, glued):
    """Else the table is of no use, and everything is as slow as without."""
    text = "To be,\nor  not to be:  42 'tis  "

    def cut(tokenizer: Tokenizer) -> str:
        encoder = WordEncoder.of(tokenizer, UINT16)
        return "|".join(encoder._words.findall(encoder._normalize(text)))

    assert cut(llama) == cut(metaspace) == "▁To|▁be|,|\n|or|▁▁not|▁to|▁be|:|▁▁4|2|▁'|tis|▁▁"
    assert cut(glued) == "▁To|▁be,|\nor|▁▁not|▁to|▁be|:|▁▁|4|2|▁'tis|▁▁"


def test_a_text_that_is_not_held_all_at_once(tokenizer, monkeypatch):
    monkeypatch.setattr(words, "LONG_TEXT", 50)
    encoder = WordEncoder.of(tokenizer, UINT16)
    text = "To be, or not to be, that is the question: " * 20
    assert ids_of(encoder, text) == tokenizer.encode(text).ids


def test_the_table_stays_small(tokenizer, monkeypatch):
    monkeypatch.setattr(words, "MOST_WORDS", 30)
    encoder = WordEncoder.of(tokenizer, UINT16)
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    print(f"seed {seed}")
    for _ in range(100):
        text = "".join(draw.choices("abehiost ", k=draw.randrange(1, 300)))
        assert ids_of(encoder, text) == tokenizer.encode(text).ids, repr(text)
        assert len(encoder._table) <= 30
        assert all(len(word) <= words.LONG_WORD for word in encoder._table)


def merging_over_spaces() -> Tokenizer:
    """ "a▁" and "▁▁b" are pieces: a space joins what is left and right of it."""
    vocabulary = {piece: index for index, piece in enumerate(["?", "▁", "a", "b", "a▁", "▁▁", "▁▁b", "a▁b"])}
    merges = [("▁", "▁"), ("▁▁", "b"), ("a", "▁"), ("a▁", "b")]
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="?"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")  # type: ignore[assignment]
    return tokenizer


@settings(deadline=None, max_examples=60)
@given(text=st.text("ab c", max_size=30))
def test_pieces_with_a_space_inside(text):
    tokenizer = merging_over_spaces()
    encoder = WordEncoder.of(tokenizer, UINT16)
    assert encoder is not None
    assert ids_of(encoder, text) == tokenizer.encode(text).ids


def changed(tokenizer: Tokenizer, **model: object) -> Tokenizer:
    settings = json.loads(tokenizer.to_str())
    settings["model"] |= model
    return Tokenizer.from_str(json.dumps(settings))


def with_added_token(tokenizer: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_tokens([AddedToken("to be", normalized=True)])
    return copy


def with_normalizer(tokenizer: Tokenizer, normalizer: object) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.normalizer = normalizer  # type: ignore[assignment]
    return copy


def with_splitter(tokenizer: Tokenizer, splitter: object) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.pre_tokenizer = splitter  # type: ignore[assignment]
    return copy


@pytest.mark.parametrize(
    "other",
    [
        lambda llama: changed(llama, dropout=0.5),
        lambda llama: changed(llama, ignore_merges=True),
        lambda llama: changed(llama, byte_fallback=False),
        lambda llama: changed(llama, byte_fallback=False, fuse_unk=False, unk_token=None),
        with_added_token,
        lambda llama: with_normalizer(llama, normalizers.NFKC()),
        lambda llama: with_splitter(llama, pre_tokenizers.ByteLevel()),
        lambda llama: with_splitter(llama, pre_tokenizers.Metaspace(split=True)),
        lambda llama: Tokenizer(WordLevel({"a": 0}, unk_token="a")),
    ],
    ids=[
        "dropout",
        "ignore_merges",
        "fused unknowns",
        "dropped unknowns",
        "added",
        "nfkc",
        "byte level",
        "metaspace",
        "word level",
    ],
)
def test_tokenizers_of_other_kinds_are_left_alone(llama, other):
    assert WordEncoder.of(other(llama), UINT16) is None
