"""The published formats, and what is said about files that are not like that."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_patch.evaluation.errors import EvaluationError
from ascend_patch.evaluation.formats import Subject, read_boolq, read_ceval, read_mmlu, read_mmlu_1000

HEADER = "id,question,A,B,C,D,answer,explanation\n"
ROW = '"Which, of\nthese?",1,"2, 3",4,5,C\n'


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def mmlu(root: Path, test: str | bytes = ROW, dev: str | bytes = ROW) -> Path:
    write(root / "test" / "anatomy_test.csv", test)
    write(root / "dev" / "anatomy_dev.csv", dev)
    return root


def ceval(root: Path, val: str | bytes) -> Path:
    write(root / "val" / "law_val.csv", val)
    write(root / "dev" / "law_dev.csv", HEADER + "0,甲,一,二,三,四,A,因为\n")
    return root


def test_mmlu(tmp_path: Path) -> None:
    """Quoted texts with commas and line ends; the root and its folder test name the same."""
    question = {"question": "Which, of\nthese?", "choices": ["1", "2, 3", "4", "5"], "answer": 2}
    wanted = [Subject("anatomy", [question, question], [question])]
    root = mmlu(tmp_path, ROW + "\n" + ROW)
    assert read_mmlu(root) == read_mmlu(root / "test") == wanted


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_inside_a_question(tmp_path: Path, end: str) -> None:
    """Unicode's line separators, form feeds and the like do not end a line."""
    root = mmlu(tmp_path, f"Why\u2028so\x0cor\x85so?,1,2,3,4,D{end}Why?,1,2,3,4,A{end}")
    assert [one["question"] for one in read_mmlu(root)[0].questions] == ["Why\u2028so\x0cor\x85so?", "Why?"]


def test_ceval(tmp_path: Path) -> None:
    """Columns are found by the header, whatever their order; the mark that some editors put first is not part of it."""
    root = ceval(tmp_path, b"\xef\xbb\xbf" + "answer,id,question,A,B,C,D\nD,0,问,1,2,3,4\n".encode())
    (subject,) = read_ceval(root)
    assert subject.questions == [{"question": "问", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "D"}]
    assert subject.examples[0]["answer"] == "A"


def test_boolq(tmp_path: Path) -> None:
    """Both publishers' names of the file and of the answer."""
    write(tmp_path / "dev.jsonl", '{"question": "q", "title": "t", "passage": "p", "answer": true}\n\n')
    (subject,) = read_boolq(tmp_path)
    assert (subject.questions, subject.examples) == ([{"question": "q", "passage": "p", "label": 1}], [])
    write(tmp_path / "train.jsonl", '{"question": "r", "passage": "s", "label": false, "idx": 3}\n')
    assert read_boolq(tmp_path)[0].examples == [{"question": "r", "passage": "s", "label": 0}]


def test_mmlu_1000(tmp_path: Path) -> None:
    question = {"question": "Why?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", "answer": "B"}
    file = write(tmp_path / "samples.jsonl", json.dumps(question))
    assert read_mmlu_1000(file) == [Subject("mmlu_1000", [question], [])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW + "Why?,1,2,3,A\n", "anatomy_test.csv, line 3: found 5 columns, allowed: 6: question, A, B, C, D, answer"),
        (ROW + "Why?,1,2,3,4,E\n", "line 3: found answer 'E', allowed: A, B, C, D"),
        ("Why?,1,2,3,4,a\n", "line 1: found answer 'a'"),
        (" ,1,2,3,4,A\n", "line 1: found an empty question"),
        ("", "anatomy_test.csv, line 1: found no question, allowed: one or more"),
        (ROW.encode() + "Où?,1,2,3,4,A".encode("latin-1"), "line 3: found byte 0xf9, allowed: UTF-8"),
        ('"Why?,1,2,3,4,A\n', "line 1: found unexpected end of data, allowed: comma-separated values"),
    ],
    ids=["columns", "letter", "case", "blank", "empty", "encoding", "quote"],
)
def test_bad_mmlu(tmp_path: Path, content: str | bytes, message: str) -> None:
    """The file, the line, and what is allowed."""
    with pytest.raises(EvaluationError) as error:
        read_mmlu(mmlu(tmp_path, content))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "law_val.csv, line 1: found no column question, A, B, C, D, answer"),
        ("id,question,A,B,C,answer\n", "found no column D, allowed: a header with question, A, B, C, D, answer"),
        (HEADER, "found no question"),
        (HEADER + "0,问,1,2,3,4,A\n", "line 2: found 7 columns, allowed: 8, as the header has"),
        (HEADER + "0,问,1,2,3,4,,因为\n", "line 2: found answer '', allowed: A, B, C, D"),
        ((HEADER + "0,问,1,2,3,4,A,因为\n").encode("gbk"), "line 2: found byte 0x"),
    ],
    ids=["empty", "header", "no-rows", "columns", "no-answer", "encoding"],
)
def test_bad_ceval(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(EvaluationError) as error:
        read_ceval(ceval(tmp_path, content))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "q", "passage": "p", "answer": "yes"}', 'line 1: found answer "yes", allowed: true or false'),
        ('{"question": "q", "passage": "p"}', "found answer null"),
        ('{"question": "q", "answer": true}', "found no passage, allowed: objects with question, passage and answer"),
        ('\n["q"]', "line 2: found '[\"q\"]', allowed: one JSON object a line"),
        ('{"question": ', "allowed: one JSON object a line"),
        ("", "found no question"),
    ],
    ids=["answer", "no-answer", "no-passage", "list", "json", "empty"],
)
def test_bad_boolq(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path / "val.jsonl", content)
    with pytest.raises(EvaluationError) as error:
        read_boolq(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"question": "Why?", "answer": "A"}, 'no question that ends with "Answer:"'),
        ({"question": "Why?\nAnswer:", "answer": 1}, "found answer 1, allowed: A, B, C, D"),
    ],
    ids=["question", "answer"],
)
def test_bad_samples(tmp_path: Path, value: dict, message: str) -> None:
    with pytest.raises(EvaluationError) as error:
        read_mmlu_1000(write(tmp_path / "samples.jsonl", json.dumps(value)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (read_mmlu, "test has no file <subject>_test.csv"),
        (read_ceval, "val has no file <subject>_val.csv"),
        (read_boolq, "has no val.jsonl, and no dev.jsonl"),
        (read_mmlu_1000, "cannot be read"),
    ],
)
def test_nothing_there(tmp_path: Path, read: Callable, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read(tmp_path)


def test_no_examples(tmp_path: Path) -> None:
    write(tmp_path / "test" / "anatomy_test.csv", ROW)
    with pytest.raises(EvaluationError, match=r"dev/anatomy_dev\.csv is missing"):
        read_mmlu(tmp_path)
