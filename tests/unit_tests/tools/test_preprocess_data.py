"""Text to .bin/.idx: read back through upstream, and every way the input can be wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests import upstream
from tools.preprocess_data import DataError, load_tokenizer, main, read_documents, write_dataset

TEXTS = ["To be, or not to be", "that is the question:", "Whether 'tis nobler"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_back(prefix) -> list[list[int]]:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    assert list(dataset.document_indices) == list(range(len(dataset) + 1))
    return [np.asarray(dataset[index]).tolist() for index in range(len(dataset))]


@pytest.mark.parametrize("append_eod", [True, False])
def test_upstream_reads_what_was_written(tokenizer, tmp_path, append_eod):
    dataset = write_dataset(iter(TEXTS), tokenizer, tmp_path / "new" / "text_document", append_eod)
    end = [tokenizer.eos_token_id] if append_eod else []
    expected = [[*tokenizer(text)["input_ids"], *end] for text in TEXTS]
    assert read_back(dataset.prefix) == expected
    assert (dataset.documents, dataset.tokens) == (3, sum(map(len, expected)))
    assert expected[0][0] == tokenizer.bos_token_id
    assert sorted(path.name for path in dataset.prefix.parent.iterdir()) == ["text_document.bin", "text_document.idx"]


def test_it_equals_what_upstreams_own_preprocessing_would_write(tokenizer_folder, tokenizer, tmp_path):
    """Upstream's tokenizer wrapper gives the ids and the end-of-document token."""
    from megatron.core.tokenizers import MegatronTokenizer

    theirs = MegatronTokenizer.from_pretrained(
        tokenizer_path=str(tokenizer_folder), metadata_path={"library": "huggingface"}
    )
    dataset = write_dataset(TEXTS, tokenizer, tmp_path / "text_document")
    assert read_back(dataset.prefix) == [[*theirs.tokenize(text), theirs.eod] for text in TEXTS]


def test_more_documents_than_a_batch(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.preprocess_data.DOCUMENTS_PER_BATCH", 2)
    dataset = write_dataset(TEXTS, tokenizer, tmp_path / "text_document")
    assert dataset.documents == 3
    assert len(read_back(dataset.prefix)) == 3


def test_a_failure_leaves_the_old_dataset(tokenizer, tmp_path):
    prefix = tmp_path / "text_document"
    write_dataset(TEXTS, tokenizer, prefix)
    before = read_back(prefix)

    def failing():
        yield "first"
        raise DataError("second is bad")

    with pytest.raises(DataError, match="second is bad"):
        write_dataset(failing(), tokenizer, prefix)
    assert read_back(prefix) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_to_write(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no document that is not empty"):
        write_dataset([], tokenizer, tmp_path / "text_document")
    assert list(tmp_path.iterdir()) == []


def test_documents_and_what_is_left_out(tmp_path):
    lines = [json.dumps({"text": "one", "more": 1}), "", json.dumps({"text": "  \n"}), json.dumps({"text": "zwölf 二"})]
    assert list(read_documents(write_lines(tmp_path / "my.jsonl", *lines))) == ["one", "zwölf 二"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"my.jsonl, line 2: not JSON \(.* at column 2\)"),
        ('"only a string"', "my.jsonl, line 2: a JSON str, not an object"),
        ('{"content": "x"}', r"my.jsonl, line 2: no 'text' among its keys \('content'\)"),
        ("{}", r"my.jsonl, line 2: no 'text' among its keys \(none\)"),
        ('{"text": ["x"]}', "my.jsonl, line 2: 'text' holds a list, not a string"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write_lines(tmp_path / "my.jsonl", '{"text": "good"}', line)
    with pytest.raises(DataError, match=message) as error:
        list(read_documents(path))
    assert 'such as {"text": "..."}' in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="absent.jsonl cannot be read: No such file"):
        list(read_documents(tmp_path / "absent.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="latin.jsonl is not UTF-8 text .* at byte 10"):
        list(read_documents(tmp_path / "latin.jsonl"))


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(DataError, match="holds neither tokenizer.model nor tokenizer.json"):
        load_tokenizer(tmp_path)


def test_the_command(tokenizer_folder, tokenizer, tmp_path, capsys):
    path = write_lines(tmp_path / "my.jsonl", *(json.dumps({"text": text, "title": "T"}) for text in TEXTS))
    out = tmp_path / "out" / "my"
    main(
        ["--input", str(path), "--output-prefix", str(out), "--tokenizer-name-or-path", str(tokenizer_folder)]
        + ["--json-keys", "text", "title", "--append-eod"]
    )
    assert len(read_back(f"{out}_text_document")) == len(read_back(f"{out}_title_document")) == 3
    assert f"{out}_text_document: 3 documents" in capsys.readouterr().out


def test_the_command_says_what_is_wrong(tokenizer_folder, tmp_path):
    path = write_lines(tmp_path / "my.jsonl", "[]")
    result = subprocess.run(
        [sys.executable, "tools/preprocess_data.py", "--input", str(path), "--output-prefix", str(tmp_path / "out")]
        + ["--tokenizer-name-or-path", str(tokenizer_folder)],
        env=upstream.environment(upstream.INSTALLED),
        cwd=upstream.ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert f"preprocess_data: {path}, line 1: a JSON list, not an object" in result.stderr
    assert "Traceback" not in result.stderr
