"""Questions as the data sets publish them, read from local files; nothing is downloaded.

What a reader returns has the columns that lm-eval's own tasks of the same data set read. A file that is not as
published is refused with its name, the line, and what is allowed there.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ascend_patch.evaluation.errors import EvaluationError

LETTERS = ("A", "B", "C", "D")
_CEVAL_COLUMNS = ("question", *LETTERS, "answer")


@dataclass(frozen=True)
class Subject:
    """Questions of one kind, and examples with answers that may be shown before each."""

    name: str
    questions: list[dict[str, Any]]
    examples: list[dict[str, Any]]


def read_mmlu(folder: Path) -> list[Subject]:
    """MMLU: ``test/<subject>_test.csv`` and ``dev/<subject>_dev.csv``: question, A, B, C, D, answer; no header.

    Args:
        folder: that holds ``test`` and ``dev``, or ``test`` itself.

    Raises:
        EvaluationError: a folder or file is missing, or not as published.
    """
    return _subjects(folder, "test", lambda file: [_mmlu_question(file, *row) for row in _rows(file)])


def read_ceval(folder: Path) -> list[Subject]:
    """C-Eval: ``val/<subject>_val.csv`` and ``dev/<subject>_dev.csv`` with a header, ``explanation`` in the latter.

    Args:
        folder: that holds ``val`` and ``dev``, or ``val`` itself. The answers of ``test`` are not published.

    Raises:
        EvaluationError: a folder or file is missing, or not as published.
    """
    return _subjects(folder, "val", _read_ceval_file)


def read_boolq(folder: Path) -> list[Subject]:
    """BoolQ: ``val.jsonl`` or ``dev.jsonl``, and perhaps ``train.jsonl``; objects with question, passage and answer.

    The answer is true or false; in SuperGLUE's files it is called ``label``.

    Raises:
        EvaluationError: a file is missing, or not as published.
    """
    found = next((folder / name for name in ("val.jsonl", "dev.jsonl") if (folder / name).is_file()), None)
    if found is None:
        raise EvaluationError(f"{folder} has no val.jsonl, and no dev.jsonl. Name the folder that holds BoolQ's files.")
    train = folder / "train.jsonl"
    examples = _read_boolq_file(train) if train.is_file() else []
    return [Subject("boolq", _not_empty(found, _read_boolq_file(found)), examples)]


def read_mmlu_1000(file: Path) -> list[Subject]:
    """1000 questions of MMLU as the package ``evals`` ships them: objects with question, choices included, and answer.

    Raises:
        EvaluationError: the file is missing, or not like that.
    """
    return [Subject("mmlu_1000", _not_empty(file, [_sample(file, *line) for line in _objects(file)]), [])]


def _subjects(folder: Path, split: str, read: Callable[[Path], list[dict[str, Any]]]) -> list[Subject]:
    root = folder.parent if folder.name == split and not (folder / split).is_dir() else folder
    suffix = f"_{split}.csv"
    files = sorted((root / split).glob(f"*{suffix}"))
    if not files:
        raise EvaluationError(
            f"{root / split} has no file <subject>{suffix}. Name the folder that holds {split}/ and dev/, as the data "
            "set is published."
        )
    subjects = []
    for file in files:
        name = file.name.removesuffix(suffix)
        examples = root / "dev" / f"{name}_dev.csv"
        if not examples.is_file():
            raise EvaluationError(f"{examples} is missing: the examples that come before the questions of {file}.")
        subjects.append(Subject(name, _not_empty(file, read(file)), _not_empty(examples, read(examples))))
    return subjects


def _mmlu_question(file: Path, line: int, row: Sequence[str]) -> dict[str, Any]:
    if len(row) != 6:
        _refuse(file, line, f"{len(row)} columns", "6: question, A, B, C, D, answer")
    question, *choices, answer = row
    _check(file, line, question, answer)
    return {"question": question, "choices": choices, "answer": LETTERS.index(answer)}


def _read_ceval_file(file: Path) -> list[dict[str, Any]]:
    (line, header), *rows = list(_rows(file)) or [(1, [])]
    if missing := [name for name in _CEVAL_COLUMNS if name not in header]:
        _refuse(file, line, f"no column {', '.join(missing)}", f"a header with {', '.join(_CEVAL_COLUMNS)}")
    questions = []
    for line, row in rows:
        if len(row) != len(header):
            _refuse(file, line, f"{len(row)} columns", f"{len(header)}, as the header has")
        values = dict(zip(header, row, strict=True))
        _check(file, line, values["question"], values["answer"])
        questions.append({name: values[name] for name in _CEVAL_COLUMNS})
    return questions


def _read_boolq_file(file: Path) -> list[dict[str, Any]]:
    questions = []
    for line, value in _objects(file):
        answer = value.get("answer", value.get("label"))
        if not isinstance(answer, bool):
            _refuse(file, line, f"answer {json.dumps(answer)}", "true or false")
        for name in ("question", "passage"):
            if not isinstance(value.get(name), str) or not value[name].strip():
                _refuse(file, line, f"no {name}", "objects with question, passage and answer")
        questions.append({"question": value["question"], "passage": value["passage"], "label": int(answer)})
    return questions


def _sample(file: Path, line: int, value: dict[str, Any]) -> dict[str, Any]:
    question, answer = value.get("question"), value.get("answer")
    if not isinstance(question, str) or not question.endswith("Answer:"):
        _refuse(file, line, 'no question that ends with "Answer:"', "question, with the choices A to D and that end")
    if not isinstance(answer, str):
        _refuse(file, line, f"answer {json.dumps(answer)}", ", ".join(LETTERS))
    _check(file, line, question, answer)
    return {"question": question, "answer": answer}


def _check(file: Path, line: int, question: str, answer: str) -> None:
    if answer not in LETTERS:
        _refuse(file, line, f"answer {answer!r}", ", ".join(LETTERS))
    if not question.strip():
        _refuse(file, line, "an empty question", "a text")


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The line and the columns of each row of a CSV file. A row may have several lines; its last counts."""
    # Only line ends separate rows; str.splitlines takes separators that questions have inside.
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        _refuse(file, reader.line_num, str(error), "comma-separated values, with quotes around texts that need them")


def _objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The line and the object of each line of a JSONL file."""
    for line, text in enumerate(_text(file).split("\n"), 1):
        if text.strip():
            try:
                value = json.loads(text)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                _refuse(file, line, repr(text[:40]), "one JSON object a line")
            yield line, value


def _text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{file} cannot be read: {error.strerror}. Name the data set's own files.") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        _refuse(file, line, f"byte 0x{content[error.start]:02x}", "UTF-8")


def _not_empty(file: Path, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not questions:
        _refuse(file, 1, "no question", "one or more")
    return questions


def _refuse(file: Path, line: int, found: str, allowed: str) -> NoReturn:
    raise EvaluationError(f"{file}, line {line}: found {found}, allowed: {allowed}. Correct the file.")
