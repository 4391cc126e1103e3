"""The Hugging Face tokenizer gives the ids of SentencePiece itself."""

import random

import pytest
from sentencepiece import SentencePieceProcessor

from tools.preprocess_data import load_tokenizer
from tools.train.tokenizer import write_file

from .conftest import SENTENCES


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder).hf


@pytest.fixture(scope="module")
def pieces(sentencepiece_model):
    return SentencePieceProcessor(model_proto=sentencepiece_model)


@pytest.mark.parametrize(
    "text",
    [*SENTENCES, "a,  b", " lead", "trail ", "\n\nlines\n", "你好 𓀀", "tabs\t\there", " " * 37 + "x", "<s> is text"],
)
def test_ids_are_those_of_sentencepiece(tokenizer, pieces, text):
    if text.startswith("<s>"):
        assert tokenizer(text)["input_ids"][:2] == [1, 1]  # a special token, as in every Llama tokenizer of HF
        return
    assert tokenizer(text)["input_ids"] == [pieces.bos_id(), *pieces.encode(text)]


def test_ids_of_random_text(tokenizer, pieces):
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    print(f"seed {seed}")
    for _ in range(200):
        text = "".join(draw.choices("abehiost ,.'\n  Tq\u00e9\u4f60", k=draw.randrange(1, 60)))
        assert tokenizer(text)["input_ids"] == [pieces.bos_id(), *pieces.encode(text)], repr(text)


def test_text_comes_back(tokenizer):
    for text in [*SENTENCES, "你好 𓀀"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_special_tokens(tokenizer, pieces):
    assert len(tokenizer) == pieces.get_piece_size()
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_a_file_is_complete_or_not_there(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"old")
    with pytest.raises(TypeError):
        write_file(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
