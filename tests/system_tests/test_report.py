"""The report shows what failed, and its checks can fail."""

import json
from pathlib import Path

import pytest

from tests.system_tests import report
from tests.system_tests.report import Compared, Record

CURVE = [5.0, 4.0, 3.0]


def compare(**limits: float) -> tuple[dict, str]:
    """What is recorded of two runs of which one is a hundredth off in the last iteration, and the error."""
    recorded = []
    compared = Compared(lambda name, value: recorded.append(value))
    try:
        compared.losses("A and B", ("A", [*CURVE[:2], 3.03]), ("B", CURVE), **limits)
    except AssertionError as error:
        return recorded[0], str(error)
    return recorded[0], ""


@pytest.mark.parametrize(("limit", "error"), [(0.02, ""), (0.005, "A and B, any loss: 0.01 instead of at most 0.005")])
def test_losses(limit: float, error: str) -> None:
    recorded, found = compare(first=0.0, every=limit)
    assert found.partition("\n")[0] == error
    assert recorded["figures"] == {"first loss": [0.0, 0.0], "any loss": [pytest.approx(0.01), limit]}


@pytest.mark.parametrize("names", [[], ["weight"]])
def test_differing(names: list[str]) -> None:
    recorded = []
    compared = Compared(lambda name, value: recorded.append(value))
    if names:
        with pytest.raises(AssertionError):
            compared.differing("A and B", "tensors", names)
    else:
        compared.differing("A and B", "tensors", names)
    assert recorded[0]["figures"] == {"tensors": [len(names), 0]}
    assert recorded[0]["what"] == ("A and B: weight" if names else "A and B")


def test_not_a_number_is_beyond_every_limit() -> None:
    with pytest.raises(AssertionError):
        Compared(lambda *_: None).losses("A and B", ("A", [1.0, float("nan")]), ("B", [1.0, 1.0]), 1.0, 1.0)


@pytest.mark.parametrize(("limit", "outcome", "code"), [(0.02, "passed", 0), (0.005, "failed", 1)])
def test_page_and_picture(tmp_path: Path, limit: float, outcome: str, code: int) -> None:
    records = [Record("tests/test_a.py::test_it", outcome, 61.0, compared=[compare(first=0.0, every=limit)[0]])]
    records.append(Record("tests/test_b.py::test_other", "skipped", 0.0, "Skipped: no namespaces"))
    file = tmp_path / "host.json"
    file.write_text(json.dumps({"exit status": code, "records": [vars(record) for record in records]}))
    assert report.main([str(tmp_path), str(file)]) == code
    page = (tmp_path / "report.md").read_text()
    assert f"| A and B | any loss | 0.01 | {limit} | {'yes' if code == 0 else '**NO**'} |" in page
    assert "| `test_b.py::test_other` | skipped: Skipped: no namespaces | 0 |" in page
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_a_half_that_left_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        report.main([str(tmp_path), str(tmp_path / "npu.json")])
