"""The result of an evaluation: tables for people, JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Accuracy:
    """How many of the questions of a subject were answered rightly."""

    name: str
    questions: int
    right: int

    @property
    def fraction(self) -> float:
        """Of right answers."""
        return self.right / self.questions


def accuracies(names: Mapping[str, str], results: Mapping[str, Any]) -> list[Accuracy]:
    """By subject, sorted.

    Args:
        names: of lm-eval's task -> of the subject.
        results: lm-eval's, with samples.
    """
    found = []
    for task, subject in sorted(names.items(), key=lambda item: item[1]):
        samples = results["samples"][task]
        found.append(Accuracy(subject, len(samples), sum(int(sample["acc"]) for sample in samples)))
    return found


def total(name: str, subjects: Sequence[Accuracy]) -> Accuracy:
    """Of all questions; subjects with more questions weigh more."""
    return Accuracy(name, sum(one.questions for one in subjects), sum(one.right for one in subjects))


def answers(names: Mapping[str, str], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the model said to each question; the arguments are those of :func:`accuracies`."""
    found = []
    for task, subject in sorted(names.items(), key=lambda item: item[1]):
        for sample in results["samples"][task]:
            logprobs = [logprob for logprob, _ in sample["filtered_resps"]]
            found.append(
                {
                    "subject": subject,
                    "question": sample["doc_id"],
                    "logprobs": logprobs,
                    "answer": max(range(len(logprobs)), key=logprobs.__getitem__),
                    "right": bool(sample["acc"]),
                }
            )
    return found


def subject_table(subjects: Sequence[Accuracy]) -> str:
    """A row for each subject."""
    return table(
        ("subject", "questions", "accuracy"),
        [(one.name, str(one.questions), f"{one.fraction:.3f}") for one in subjects],
    )


def summary_table(whole: Accuracy, reference: float | None, device: str) -> str:
    """One row: the data set, its questions, the published accuracy and ours."""
    return table(
        ("data set", "questions", "reference accuracy", f"{device} accuracy"),
        [(whole.name, str(whole.questions), "–" if reference is None else f"{reference:.3f}", f"{whole.fraction:.3f}")],
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return " | ".join([f"| {first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]) + " |"

    dashes = " | ".join([f"| {'-' * widths[0]}", *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(header), dashes, *map(line, rows)])
