"""Accuracies and the tables that show them."""

from ascend_patch.evaluation import report

SAMPLES = {
    "mmlu_virology": [
        {"acc": 1.0, "doc_id": 0, "filtered_resps": [(-1.0, False), (-0.5, True), (-3.0, False), (-2.0, False)]},
    ],
    "mmlu_anatomy": [
        {"acc": 0.0, "doc_id": place, "filtered_resps": [(-0.25, True), (-0.5, False)]} for place in range(3)
    ],
}
NAMES = {"mmlu_virology": "virology", "mmlu_anatomy": "anatomy"}


def test_questions_weigh_alike() -> None:
    """One of four, whatever the subjects."""
    subjects = report.accuracies(NAMES, {"samples": SAMPLES})
    assert subjects == [report.Accuracy("anatomy", 3, 0), report.Accuracy("virology", 1, 1)]
    assert report.total("MMLU", subjects).fraction == 0.25


def test_answers() -> None:
    """The most probable one, with all log-probabilities."""
    *_, last = report.answers(NAMES, {"samples": SAMPLES})
    assert last == {
        "subject": "virology",
        "question": 0,
        "logprobs": [-1.0, -0.5, -3.0, -2.0],
        "answer": 1,
        "right": True,
    }


def test_tables() -> None:
    subjects = [report.Accuracy("anatomy", 3, 0), report.Accuracy("virology", 1, 1)]
    assert report.subject_table(subjects).splitlines() == [
        "| subject  | questions | accuracy |",
        "| -------- | --------: | -------: |",
        "| anatomy  |         3 |    0.000 |",
        "| virology |         1 |    1.000 |",
    ]
    assert report.summary_table(report.total("MMLU", subjects), 0.706, "npu").splitlines()[::2] == [
        "| data set | questions | reference accuracy | npu accuracy |",
        "| MMLU     |         4 |              0.706 |        0.250 |",
    ]
    assert "|                  – |" in report.summary_table(report.total("C-Eval", subjects), None, "npu")
