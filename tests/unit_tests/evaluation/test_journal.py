"""What is computed once stays, whatever ends the process; nobody else's results are taken."""

from pathlib import Path

import pytest

from ascend_patch.evaluation.errors import EvaluationError
from ascend_patch.evaluation.journal import Journal, keys

OWNER = {"model": {"layers": 2, "files": "abc"}, "task": "mmlu"}
RESULTS = {"a": [-1.0000000000000002, True], "b": "text\n", "c": [float("-inf"), False]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A journal with three results."""
    file = tmp_path / "deep" / "mmlu.json.journal"
    with Journal(file, OWNER) as journal:
        for key, result in RESULTS.items():
            journal.add(key, result)
    return file


def test_results_come_back(file: Path) -> None:
    with Journal(file, OWNER) as journal:
        assert journal.results == RESULTS


@pytest.mark.parametrize("left", range(1, 30, 4))
def test_a_line_that_was_cut_off_is_ignored(file: Path, left: int) -> None:
    """The next result does not become part of it."""
    content = file.read_bytes()
    start = content[:-1].rfind(b"\n") + 1
    file.write_bytes(content[: start + left])
    with Journal(file, OWNER) as journal:
        assert list(journal.results) == ["a", "b"]
        journal.add("d", 1)
    with Journal(file, OWNER) as journal:
        assert list(journal.results) == ["a", "b", "d"]


def test_a_first_line_that_was_cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])
    with Journal(file, OWNER) as journal:
        assert journal.results == {}


@pytest.mark.parametrize(
    ("owner", "difference"),
    [
        (OWNER | {"task": "boolq"}, "task was mmlu and is boolq"),
        (OWNER | {"model": {"layers": 2, "files": "def"}}, "model files was abc and is def"),
    ],
    ids=["task", "model"],
)
def test_another_evaluation_is_refused(file: Path, owner: dict, difference: str) -> None:
    before = file.read_bytes()
    with pytest.raises(EvaluationError, match=f"has the results of another evaluation: {difference}"):
        Journal(file, owner)
    assert file.read_bytes() == before


@pytest.mark.parametrize("line", [b"[]\n", b"{}\n", b"not json\n"])
def test_damage_is_not_read(file: Path, line: bytes) -> None:
    first, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([first, line, *rest]))
    with pytest.raises(EvaluationError, match="is damaged"):
        Journal(file, OWNER)


def test_two_evaluations_do_not_share_it(file: Path) -> None:
    with Journal(file, OWNER), pytest.raises(EvaluationError, match="is being written by another evaluation"):
        Journal(file, OWNER)


def test_keys() -> None:
    """Equal requests have different keys, in the same order each time; the kind counts."""
    requests = [([1, 2], [3]), ([1], [2, 3]), ([1, 2], [3])]
    found = keys("loglikelihood", requests)
    assert found == keys("loglikelihood", requests)
    assert len(set(found)) == 3
    assert keys("loglikelihood", requests[1:])[:1] == found[1:2]
    assert not set(found) & set(keys("other", requests))
