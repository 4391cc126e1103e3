"""The command: its options, what it prints, how it fails."""

import gzip
import json
import subprocess
import sys

import pytest

from tests import upstream
from tests.unit_tests.data.upstream import read
from tools.preprocess_data import load_tokenizer, main

TEXTS = ["To be, or not to be", "that is the question:", "Whether 'tis nobler"]


@pytest.fixture
def command(tokenizer_folder, tmp_path):
    """Runs it; later options win."""
    (tmp_path / "my.jsonl").write_text("".join(json.dumps({"text": text, "title": "T"}) + "\n" for text in TEXTS))

    def run(*options: str) -> int:
        defaults = ["--input", f"{tmp_path}/my.jsonl", "--output-prefix", f"{tmp_path}/out/my", "--workers", "1"]
        return main([*defaults, "--tokenizer-name-or-path", str(tokenizer_folder), *options])

    return run


def test_datasets_and_figures(command, tokenizer_folder, tmp_path, capsys):
    assert command("--json-keys", "text", "title", "--append-eod") == 0
    tokenizer = load_tokenizer(tokenizer_folder)
    expected = [[*ids, tokenizer.eod] for ids in tokenizer.encode(TEXTS)]
    assert read(f"{tmp_path}/out/my_text_document") == expected
    assert len(read(f"{tmp_path}/out/my_title_document")) == 3
    tokens = sum(map(len, expected))
    assert f"{tmp_path}/out/my_text_document: 3 documents, {tokens} tokens\n" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_the_seeds_spelling(command, tokenizer_folder, tmp_path):
    """As the guides for Ascend write it."""
    assert command("--tokenizer-type", "PretrainedFromHF", "--tokenizer-not-use-fast", "--log-interval", "1000") == 0
    assert len(read(f"{tmp_path}/out/my_text_document")) == 3


def test_upstreams_spelling(command, tokenizer_folder, tmp_path):
    model = tokenizer_folder / "tokenizer.model"
    assert command("--tokenizer-type", "Llama2Tokenizer", "--tokenizer-model", str(model)) == 0
    assert read(f"{tmp_path}/out/my_text_document") == load_tokenizer(model, "Llama2Tokenizer").encode(TEXTS)


def test_what_was_left_out_and_what_is_empty(command, tmp_path, capsys):
    (tmp_path / "my.txt.gz").write_bytes(gzip.compress(b'{"text": ""}\n{\n{"text": "a"}\n'))
    assert command("--input", f"{tmp_path}/my.txt.gz", "--input-format", "jsonl", "--on-error", "skip") == 0
    shown = capsys.readouterr()
    assert "2 documents, " in shown.out
    assert "1 of 3 records left out: they could not be used\n" in shown.out
    assert "1 empty documents, kept\n" in shown.out
    assert "my.txt.gz, line 2: not JSON" in shown.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "absent.jsonl"], "preprocess_data: --input absent.jsonl cannot be read: No such file."),
        (["--json-keys", "body"], "my.jsonl, line 1: no 'body' among its keys ('text', 'title')."),
        (["--tokenizer-name-or-path", "absent"], "preprocess_data: absent is no tokenizer folder"),
    ],
)
def test_it_says_what_is_wrong(command, tmp_path, capsys, options, message):
    assert command(*options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("options", [["--workers", "0"], ["--tokenizer-type", "Mine"], ["--on-error", "hide"]])
def test_a_wrong_command_line(command, options):
    with pytest.raises(SystemExit) as ended:
        command(*options)
    assert ended.value.code == 2


def test_as_a_script_from_standard_input(tokenizer_folder, tmp_path):
    command = [sys.executable, "tools/preprocess_data.py", "--input", "-", "--output-prefix", str(tmp_path / "out")]
    command += ["--tokenizer-type", "Llama2Tokenizer", "--tokenizer-model", str(tokenizer_folder), "--workers", "2"]
    environment = upstream.environment(upstream.INSTALLED)
    for text, status in (('{"text": "To be"}\n', 0), ("[]\n", 1)):
        ended = subprocess.run(command, env=environment, cwd=upstream.ROOT, input=text, capture_output=True, text=True)
        assert ended.returncode == status, ended.stderr
        assert "Traceback" not in ended.stderr
    assert "preprocess_data: standard input, line 1: an array, but a record is a JSON object." in ended.stderr
    assert len(read(tmp_path / "out_text_document")) == 1


def test_it_starts_without_the_heavy_libraries():
    """`--help` and a wrong command line are answered at once."""
    script = (
        "import sys, tools.preprocess_data\n"
        "print([name for name in ('torch', 'transformers', 'megatron', 'pyarrow') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=upstream.ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[]\n"
