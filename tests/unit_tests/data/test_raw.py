"""Records tokenized when they are read."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from ascend_patch.data.conversations import from_any
from ascend_patch.data.errors import DataError
from ascend_patch.data.raw import RawConversations
from ascend_patch.data.templates import MistralTemplate
from ascend_patch.data.tokenize import load_tokenizer

RECORDS = [
    {"instruction": "To be,", "output": "or not to be"},
    {"messages": [{"role": "user", "content": "that is"}, {"role": "assistant", "content": "the question"}]},
    {"conversations": [{"from": "human", "value": "Whether"}, {"from": "gpt", "value": "'tis nobler"}]},
]


def write(path: Path) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(RECORDS) if path.suffix == ".json" else lines)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz"])
def test_formats(name: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    raw = RawConversations(write(tmp_path / name), str(tokenizer_folder))
    template = MistralTemplate(load_tokenizer(tokenizer_folder))
    assert len(raw) == len(RECORDS)
    for index, record in enumerate(RECORDS):
        (found,), (expected,) = raw[index], template.encode([from_any(record)])
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.learned, expected.learned)


def test_a_file_of_the_tokenizers_folder(tmp_path: Path, tokenizer_folder: Path) -> None:
    """As --tokenizer-type Llama2Tokenizer has it."""
    path = write(tmp_path / "a.jsonl")
    one, other = (RawConversations(path, str(t)) for t in (tokenizer_folder, tokenizer_folder / "tokenizer.model"))
    assert np.array_equal(one[0][0].ids, other[0][0].ids)


def test_bad_input(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "q", "output": "a"}\n\n{"instruction": "q", "output": ""}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: 'output' is empty"):
        RawConversations(path, str(tokenizer_folder))
    path.write_text("")
    with pytest.raises(DataError, match="holds no records"):
        RawConversations(path, str(tokenizer_folder))
    with pytest.raises(
        DataError, match="this --tokenizer-type has no files. Use --tokenizer-type HuggingFaceTokenizer"
    ):
        RawConversations(path, None)
