"""Documents decoded, with what is learned marked."""

from pathlib import Path

import pytest

from ascend_patch.data import inspect
from ascend_patch.data.conversations import Conversation, Turn
from ascend_patch.data.errors import DataError
from ascend_patch.data.templates import MistralTemplate
from ascend_patch.data.tokenize import load_tokenizer
from tests.unit_tests.data.stored_data import write

CONVERSATIONS = [
    Conversation((Turn("To be,", "or not to be,"), Turn("that is", "the question:"))),
    Conversation((Turn("Whether 'tis", "nobler"),), "In the mind"),
    Conversation((Turn("é中", "😀 é"),)),
]


@pytest.fixture
def prefix(tmp_path: Path, tokenizer_folder: Path) -> str:
    examples = MistralTemplate(load_tokenizer(tokenizer_folder)).encode(CONVERSATIONS)
    return write(tmp_path / "alpaca", [examples[:1], examples[1:]])


def test_not_a_terminal(prefix: str, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect.run([prefix, "--tokenizer-name-or-path", str(tokenizer_folder)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("document 0: 1 sequences, ")
    assert lines[1] == "<s> [INST] To be, [/INST]⟦ or not to be,</s>⟧ [INST] that is [/INST]⟦ the question:</s>⟧"
    assert lines[2].startswith("document 1: 2 sequences, ")
    assert lines[3:] == [
        "<s> [INST] In the mind",
        "",
        "Whether 'tis [/INST]⟦ nobler</s>⟧",
        "<s> [INST] é中 [/INST]⟦ 😀 é</s>⟧",
    ]


def test_a_terminal(prefix: str, tokenizer_folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    inspect.run([prefix, "--tokenizer-name-or-path", str(tokenizer_folder), "--documents", "1"])
    shown = capsys.readouterr().out
    assert "\x1b[32m or not to be,</s>" in shown
    assert "\x1b[2m<s> [INST] To be, [/INST]" in shown
    assert inspect.OPEN not in shown


def test_which_documents(prefix: str, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect.run([prefix, "--tokenizer-name-or-path", str(tokenizer_folder), "--first", "1", "--documents", "9"])
    shown = capsys.readouterr().out
    assert "document 1: " in shown
    assert "document 0: " not in shown


def test_plain_text(tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tools.preprocess_data import write_dataset

    write_dataset(["To be", "or not"], load_tokenizer(tokenizer_folder), tmp_path / "play_text_document")
    for name in ("play", "play_text_document"):
        inspect.run([str(tmp_path / name), "--tokenizer-name-or-path", str(tokenizer_folder), "--documents", "2"])
        assert "⟦<s> To be</s>⟧\n" in capsys.readouterr().out
    with pytest.raises(DataError, match="There is no prepared data under"):
        inspect.run([str(tmp_path / "none"), "--tokenizer-name-or-path", str(tokenizer_folder)])
