"""Tokenizers give the ids of upstream's own wrappers, whatever way leads to them."""

import json
import shutil

import numpy as np
import pytest
import transformers

from ascend_patch.data import tokenize
from ascend_patch.data.errors import DataError
from ascend_patch.data.tokenize import PROBES, dtype_of, fingerprint, load_tokenizer


def upstream(path, library):
    from megatron.core.tokenizers import MegatronTokenizer

    return MegatronTokenizer.from_pretrained(tokenizer_path=str(path), metadata_path={"library": library})


@pytest.mark.parametrize("kind", ["PretrainedFromHF", "HuggingFaceTokenizer", "Llama2Tokenizer"])
def test_ids_are_those_of_upstream(tokenizer_folder, kind):
    ours = load_tokenizer(tokenizer_folder, kind)
    sentencepiece = kind == "Llama2Tokenizer"
    path = tokenizer_folder / "tokenizer.model" if sentencepiece else tokenizer_folder
    theirs = upstream(path, "sentencepiece" if sentencepiece else "huggingface")
    assert ours.encode(PROBES) == [theirs.tokenize(text) for text in PROBES]
    assert [np.frombuffer(ids, ours.dtype).tolist() for ids in ours.encode_bytes(PROBES)] == ours.encode(PROBES)
    assert (ours.eod, ours.vocab_size) == (theirs.eod, theirs.vocab_size)


def test_without_special_tokens(tokenizer_folder):
    tokenizer = load_tokenizer(tokenizer_folder)
    with_them = [ids for ids in tokenizer.encode(["a b", "c"])]
    assert tokenizer.encode(["a b", "c"], add_special_tokens=False) == [ids[1:] for ids in with_them]


@pytest.fixture
def byte_level_folder(tmp_path):
    """A tokenizer of another kind, that also asks for truncation and padding."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["To be, or not to be, that is the question"] * 3, 300, special_tokens=["</s>"])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_a_tokenizer_of_another_kind(byte_level_folder):
    ours = load_tokenizer(byte_level_folder)
    assert ours.encode(PROBES) == [upstream(byte_level_folder, "huggingface").tokenize(text) for text in PROBES]
    assert ours.encode([]) == []


def test_a_backend_that_disagrees_is_not_used(tokenizer_folder, monkeypatch):
    """A class of transformers may do more than the `tokenizers` library behind it."""
    plain = transformers.PreTrainedTokenizerFast.__call__

    def reversed_ids(self, text, **kwargs):
        encoded = plain(self, text, **kwargs)
        many = not isinstance(text, str)
        encoded["input_ids"] = [ids[::-1] for ids in encoded["input_ids"]] if many else encoded["input_ids"][::-1]
        return encoded

    expected = load_tokenizer(tokenizer_folder).encode(["To be"])[0][::-1]
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "__call__", reversed_ids)
    assert load_tokenizer(tokenizer_folder).encode(["To be"]) == [expected]


def test_words_that_disagree_are_not_used(tokenizer_folder, monkeypatch):
    expected = load_tokenizer(tokenizer_folder).encode(PROBES)
    monkeypatch.setattr(tokenize.WordEncoder, "encode", lambda self, texts, special=True: [b"" for _ in texts])
    assert load_tokenizer(tokenizer_folder).encode(PROBES) == expected


@pytest.mark.parametrize("size", [32000, 65499, 65500, 150000])
def test_dtype_is_upstreams(size):
    from megatron.core.datasets.indexed_dataset import DType

    assert dtype_of(size) == np.dtype(DType.optimal_dtype(size))


def test_a_bare_model_gives_other_ids_and_says_so(tokenizer_folder, tmp_path, caplog):
    shutil.copy(tokenizer_folder / "tokenizer.model", tmp_path)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "<unk>"}))
    tokenizer = load_tokenizer(tmp_path)
    texts = [probe for probe in PROBES if probe and "<" not in probe]
    differs = tokenizer.encode(texts, add_special_tokens=False) != load_tokenizer(tmp_path, "Llama2Tokenizer").encode(
        texts
    )
    assert ("holds no tokenizer.json" in caplog.text) == differs


def test_what_cannot_be_loaded(tmp_path, tokenizer_folder):
    with pytest.raises(DataError, match="is no tokenizer folder: it holds none of tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="transformers cannot read this tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="is no SentencePiece model"):
        load_tokenizer(tmp_path / "tokenizer.json", "Llama2Tokenizer")
    with pytest.raises(DataError, match="tokenizer.model is not there"):
        load_tokenizer(tmp_path, "Llama2Tokenizer")
    with pytest.raises(DataError, match="--tokenizer-type Mine: there is no such type. There are PretrainedFromHF"):
        load_tokenizer(tokenizer_folder, "Mine")
    with pytest.raises(DataError, match="chat templates need a tokenizer of --tokenizer-type PretrainedFromHF"):
        _ = load_tokenizer(tokenizer_folder, "Llama2Tokenizer").hf


def test_no_end_of_document(tokenizer_folder, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="names no eos_token"):
        _ = load_tokenizer(tmp_path).eod


def test_the_fingerprint_is_of_the_content(tokenizer_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tokenizer_folder, copy)
    assert fingerprint(copy) == fingerprint(tokenizer_folder)
    (copy / "tokenizer_config.json").write_text("{}")
    assert fingerprint(copy) != fingerprint(tokenizer_folder)
    assert fingerprint(copy / "tokenizer.model") != fingerprint(copy / "tokenizer.json")
