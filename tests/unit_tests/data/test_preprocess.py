"""From files to datasets: upstream's bytes, for any number of workers, and after every interruption."""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ascend_patch.data import formats
from ascend_patch.data import preprocess as module
from ascend_patch.data.errors import DataError
from ascend_patch.data.handlers import HandlerOptions
from ascend_patch.data.preprocess import preprocess, read_documents, unfinished_folder, write_dataset
from ascend_patch.data.sources import find_sources
from ascend_patch.data.text import EMPTY, TextHandler
from ascend_patch.data.tokenize import load_tokenizer
from tests.interrupts import hear_interrupts
from tests.unit_tests.data import upstream
from tools.train.corpus import split_document

PIECES = ["To be, or not to be", "  two  spaces", "\n\n", "你好 𓀀", "<s> is text </s>", "'tis", "", " ", "é", "\t0123"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


def random_lines(count: int) -> list[str]:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    print(f"seed {seed}")

    def text() -> str:
        return "".join(draw.choices(PIECES, k=draw.choice([0, 1, 5, 60])))

    def value() -> str | list[str]:
        return text() if draw.random() < 0.8 else [text() for _ in range(draw.randrange(4))]

    records = [{"text": value(), "title": text(), "n": number} for number in range(count)]
    return [json.dumps(record, ensure_ascii=draw.random() < 0.5) for record in records]


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return find_sources([str(path)])


def files(prefix, keys=("text",)) -> list[bytes]:
    return [
        prefix.with_name(f"{prefix.name}_{key}_document{end}").read_bytes() for key in keys for end in (".bin", ".idx")
    ]


@pytest.mark.parametrize("library", ["huggingface", "sentencepiece"])
@pytest.mark.parametrize("append_eod", [False, True])
@pytest.mark.parametrize("keys", [("text",), ("text", "title")])
def test_the_bytes_are_upstreams(tokenizer_folder, tmp_path, monkeypatch, library, append_eod, keys):
    monkeypatch.setattr(formats, "CHUNK_BYTES", 500)
    lines = random_lines(60)
    sources = write(tmp_path / "my.jsonl", lines)
    kind, path = "PretrainedFromHF", tokenizer_folder
    if library == "sentencepiece":
        kind, path = "Llama2Tokenizer", tokenizer_folder / "tokenizer.model"
    handler = TextHandler(load_tokenizer(path, kind), HandlerOptions(keys, append_eod))
    summary = preprocess(sources, handler, tmp_path / "ours", {})
    upstream.write(lines, tmp_path / "theirs", path, library, keys, append_eod)
    assert files(tmp_path / "ours", keys) == files(tmp_path / "theirs", keys)
    assert [dataset.documents for dataset in summary.datasets] == [60] * len(keys)
    assert not unfinished_folder(tmp_path / "ours").exists()


def test_several_files_and_workers(tokenizer, tmp_path, monkeypatch):
    lines = random_lines(90)
    write(tmp_path / "b.jsonl", lines[:30])
    (tmp_path / "c.json").write_text("[" + ",".join(lines[30:60]) + "]")
    write(tmp_path / "d.jsonl", lines[60:])
    sources = find_sources([f"{tmp_path}/b.jsonl", f"{tmp_path}/[cd].js*"])
    handler = TextHandler(tokenizer, HandlerOptions())
    written = []
    for workers, size in ((1, 1 << 20), (2, 300), (3, 300)):
        monkeypatch.setattr(formats, "CHUNK_BYTES", size)
        summary = preprocess(sources, handler, tmp_path / f"out{workers}", {}, workers=workers)
        assert (summary.records, summary.skipped) == (90, 0)
        written.append(files(tmp_path / f"out{workers}"))
    assert written[0] == written[1] == written[2]
    preprocess(write(tmp_path / "all.jsonl", lines), handler, tmp_path / "all", {})
    assert files(tmp_path / "all") == written[0]


def test_bad_records(tokenizer, tmp_path, capsys):
    good = random_lines(3)
    sources = write(tmp_path / "my.jsonl", [good[0], "{", good[1], '{"n": 1}', *["[]"] * 30, good[2]])
    handler = TextHandler(tokenizer, HandlerOptions())
    with pytest.raises(
        DataError, match=r"my.jsonl, line 2: not JSON .*\(With --on-error skip such records are left out"
    ):
        preprocess(sources, handler, tmp_path / "out", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.jsonl"]
    summary = preprocess(sources, handler, tmp_path / "out", {}, skip_bad=True)
    assert (summary.records, summary.skipped) == (35, 32)
    named = capsys.readouterr().err
    assert f"left out: {tmp_path}/my.jsonl, line 4: no 'text' among its keys ('n')" in named
    assert named.count("left out") == module.MOST_NAMED
    preprocess(write(tmp_path / "good.jsonl", good), handler, tmp_path / "good", {})
    assert files(tmp_path / "out") == files(tmp_path / "good")


def test_nothing_but_bad_records(tokenizer, tmp_path):
    sources = write(tmp_path / "my.jsonl", ["{", "{"])
    with pytest.raises(DataError, match="The input holds no documents"):
        preprocess(sources, TextHandler(tokenizer, HandlerOptions()), tmp_path / "out", {}, skip_bad=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.jsonl"]


def test_a_folder_that_cannot_be_made(tokenizer, tmp_path):
    sources = write(tmp_path / "my.jsonl", random_lines(1))
    with pytest.raises(DataError, match="my.jsonl.* cannot be written: (Not a directory|File exists)"):
        preprocess(sources, TextHandler(tokenizer, HandlerOptions()), tmp_path / "my.jsonl" / "out", {})


def test_it_goes_on_behind_a_bad_record(tokenizer, tmp_path, monkeypatch, capsys):
    """Hours of work are not lost to one line: the same command with --on-error skip goes on there."""
    monkeypatch.setattr(formats, "CHUNK_BYTES", 200)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    lines = random_lines(40)
    sources = write(tmp_path / "my.jsonl", [*lines[:30], "{", *lines[30:]])
    handler = TextHandler(tokenizer, HandlerOptions())
    with pytest.raises(DataError, match="line 31"):
        preprocess(sources, handler, tmp_path / "out", {}, workers=2)
    assert unfinished_folder(tmp_path / "out").is_dir()
    summary = preprocess(sources, handler, tmp_path / "out", {}, workers=3, skip_bad=True)
    assert (summary.records, summary.skipped) == (41, 1)
    assert "Going on behind the " in capsys.readouterr().err
    preprocess(write(tmp_path / "good.jsonl", lines), handler, tmp_path / "good", {})
    assert files(tmp_path / "out") == files(tmp_path / "good")


@pytest.mark.parametrize("change", ["content", "option"])
def test_it_does_not_go_on_with_something_else(tokenizer, tmp_path, monkeypatch, change):
    monkeypatch.setattr(formats, "CHUNK_BYTES", 200)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    lines = random_lines(20)
    sources = write(tmp_path / "my.jsonl", [*lines, "{"])
    handler = TextHandler(tokenizer, HandlerOptions())
    with pytest.raises(DataError, match="line 21"):
        preprocess(sources, handler, tmp_path / "out", {"--append-eod": False})
    if change == "content":
        sources = write(tmp_path / "my.jsonl", lines)
    with pytest.raises(DataError, match=r"other settings \((--input|--append-eod)\).*--restart"):
        preprocess(sources, handler, tmp_path / "out", {"--append-eod": change == "option"})
    sources = write(tmp_path / "my.jsonl", lines)
    preprocess(sources, handler, tmp_path / "out", {}, restart=True)
    preprocess(sources, handler, tmp_path / "new", {})
    assert files(tmp_path / "out") == files(tmp_path / "new")


LIGHT = "Llama2Tokenizer"  # starts at once, as it does not need transformers
SLOW_RUN = """
import sys, time
from pathlib import Path
from ascend_patch.data import formats, preprocess
import ascend_patch.data.text as text
import tools.preprocess_data as command

formats.CHUNK_BYTES = 2000
preprocess.SAVE_SECONDS = 0.0
encode = text.TextHandler.encode
def slowly(self, prepared):
    time.sleep({seconds})
    return encode(self, prepared)
text.TextHandler.encode = slowly
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_killed_run(tokenizer_folder, tmp_path, number):
    """Killed at some moment: no dataset is there; the same command goes on, and the bytes are those of one run."""
    write(tmp_path / "my.jsonl", random_lines(300))
    arguments = ["--input", f"{tmp_path}/my.jsonl", "--output-prefix", f"{tmp_path}/out", "--workers", "2"]
    arguments += ["--tokenizer-model", str(tokenizer_folder), "--tokenizer-type", LIGHT, "--append-eod"]
    command = [sys.executable, "-c", SLOW_RUN.format(seconds=0.2), *arguments]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts)
    state = tmp_path / "out.unfinished" / "state.json"
    deadline = time.monotonic() + 120
    while not (state.is_file() and json.loads(state.read_text())["chunks"] >= 3):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == (-number if number == signal.SIGKILL else 130), errors
    if number != signal.SIGKILL:
        assert f"preprocess_data: interrupted. The same command goes on from {tmp_path}/out.unfinished." in errors
        assert "Traceback" not in errors
    assert list(tmp_path.glob("*.idx")) == []
    done = json.loads(state.read_text())["chunks"]
    command = [sys.executable, "-c", SLOW_RUN.format(seconds=0), *arguments]
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert done >= 3 and "Going on behind the " in again.stderr
    assert "300 documents" in again.stdout
    handler = TextHandler(load_tokenizer(tokenizer_folder, LIGHT), HandlerOptions(append_eod=True))
    preprocess(find_sources([f"{tmp_path}/my.jsonl"]), handler, tmp_path / "whole", {})
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_documents_of_a_file(tmp_path):
    path = tmp_path / "my.jsonl"
    write(
        path, [json.dumps({"text": "one", "more": 1}), "", json.dumps({"text": "  \n"}), json.dumps({"text": "zwölf"})]
    )
    assert list(read_documents(path)) == ["one", "zwölf"]
    write(path, ['{"text": "one"}', '{"content": "x"}'])
    with pytest.raises(DataError, match=r"my.jsonl, line 2: no 'text' among its keys \('content'\)"):
        list(read_documents(path))
    with pytest.raises(DataError, match="absent.jsonl cannot be read: No such file"):
        list(read_documents(tmp_path / "absent.jsonl"))


@pytest.mark.parametrize("append_eod", [True, False])
def test_a_dataset_of_texts(tokenizer, tmp_path, monkeypatch, append_eod):
    monkeypatch.setattr(module, "DOCUMENTS_PER_BATCH", 2)
    texts = list(split_document("To be, or not to be,\nthat is the question:\nWhether 'tis nobler\n", 25))
    assert len(texts) == 3
    dataset = write_dataset(iter(texts), tokenizer, tmp_path / "new" / "text_document", append_eod)
    end = [tokenizer.eod] if append_eod else []
    expected = [[*tokenizer.hf(text)["input_ids"], *end] for text in texts]
    assert upstream.read(dataset.prefix) == expected
    assert (dataset.documents, dataset.tokens) == (3, sum(map(len, expected)))
    assert sorted(path.name for path in dataset.prefix.parent.iterdir()) == ["text_document.bin", "text_document.idx"]


def test_a_failure_leaves_the_old_dataset(tokenizer, tmp_path):
    prefix = tmp_path / "text_document"
    write_dataset(["To be"], tokenizer, prefix)
    before = upstream.read(prefix)

    def failing():
        yield "first"
        raise DataError("second is bad")

    with pytest.raises(DataError, match="second is bad"):
        write_dataset(failing(), tokenizer, prefix)
    with pytest.raises(DataError, match="The input holds no documents"):
        write_dataset([], tokenizer, prefix)
    assert upstream.read(prefix) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_empty_documents_are_counted(tokenizer, tmp_path):
    sources = write(tmp_path / "my.jsonl", ['{"text": ""}', '{"text": "a"}', '{"text": []}'])
    summary = preprocess(sources, TextHandler(tokenizer, HandlerOptions()), tmp_path / "out", {})
    assert summary.notes == {EMPTY: 2}
    assert summary.datasets[0].documents == 3


def test_standard_input_is_not_gone_on_with(tokenizer, tmp_path):
    """Its content cannot be told from other content, so an unfinished run of it counts as another one."""
    (source,) = find_sources(["-"])
    assert module._identity(source) != module._identity(source)
    regular = write(tmp_path / "my.jsonl", ["{}"])[0]
    assert module._identity(regular) == module._identity(replace(regular))
