"""What can be evaluated: lm-eval's tasks, with the questions of those that are published as files from local files.

Prompts, examples before a question and metrics are lm-eval's own for the data set; only where the questions come from
is different.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_patch.evaluation import formats
from ascend_patch.evaluation.errors import EvaluationError
from ascend_patch.evaluation.formats import LETTERS, Subject


@dataclass(frozen=True)
class DataSet:
    """A data set whose files are read here."""

    title: str
    read: Callable[[Path], list[Subject]]
    definitions: str
    """Where lm-eval's tasks of it are, below its folder of tasks; empty: none of its tasks, but ours."""
    prefix: str
    """Of the names of lm-eval's tasks, before the subject."""
    splits: tuple[str, str | None]
    """What these tasks call the questions, and the examples."""
    examples: int
    """Before each question, as published."""
    reference: float | None = None
    """Accuracy of Mixtral 8x7B v0.1."""
    source: str = ""


DATA_SETS = {
    "mmlu": DataSet(
        *("MMLU", formats.read_mmlu, "mmlu/default", "mmlu_", ("test", "dev"), 5),
        reference=0.706,
        source='Jiang et al. 2024, "Mixtral of Experts", table 2 (5-shot)',
    ),
    "boolq": DataSet(
        *("BoolQ", formats.read_boolq, "super_glue/boolq", "", ("validation", "train"), 0),
        reference=0.8523,
        source="intel/auto-round, docs/Mixtral-8x7B-v0.1-acc.md (float16, lm-eval's boolq, 0-shot)",
    ),
    "ceval": DataSet("C-Eval", formats.read_ceval, "ceval", "ceval-valid_", ("val", "dev"), 5),
    "mmlu_1000": DataSet("MMLU, 1000 questions", formats.read_mmlu_1000, "", "", ("test", None), 0),
}

_ANSWERS = {
    "output_type": "multiple_choice",
    "doc_to_choice": list(LETTERS),
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
_MMLU_1000 = _ANSWERS | {
    "test_split": "test",
    "description": "The following are multiple choice questions (with answers).\n\n",
    "doc_to_text": "question",
}


@dataclass(frozen=True)
class Loaded:
    """A task, as lm-eval takes it."""

    spec: Any
    """For ``simple_evaluate``."""
    manager: Any
    """lm-eval's ``TaskManager``. It reads the definitions of all tasks that it knows, so it knows few."""
    data_set: DataSet | None
    """None: an own task of lm-eval, with its own data."""
    subjects: dict[str, str]
    """Name of lm-eval's task -> subject."""


def load(name: str, data: Path | None, num_fewshot: int | None = None) -> Loaded:
    """A task of :data:`DATA_SETS` with the files in ``data``, or without ``data`` lm-eval's own one.

    Args:
        name: of :data:`DATA_SETS` or of lm-eval, or a file that defines a task as lm-eval's do.
        num_fewshot: examples before each question; None: as published.

    Raises:
        EvaluationError: there is no such task, or the files are not as published.
    """
    if data is None or name not in DATA_SETS:
        return _load_own(name, data)
    data_set = DATA_SETS[name]
    shots = data_set.examples if num_fewshot is None else num_fewshot
    subjects = data_set.read(data)
    for subject in subjects:
        if len(subject.examples) < shots:
            raise EvaluationError(
                f"{data}: {subject.name} has {len(subject.examples)} examples, and {shots} come before each question. "
                "Add some, or ask for fewer (--num-fewshot)."
            )
    # It warns that data come from a function, for each subject.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(data_set.definitions)
    names = {_task_name(data_set, subject, manager, data): subject for subject in subjects}
    members = [
        {"task": task, "custom_dataset": _questions(subject, data_set.splits), "num_fewshot": shots}
        | ({} if subject.examples else {"training_split": None})
        for task, subject in names.items()
    ]
    # The members of a group add to lm-eval's definitions of the same names; a task that is no member is all ours.
    spec = {"group": data_set.title, "task": members} if data_set.definitions else _MMLU_1000 | members[0]
    return Loaded(spec, manager, data_set, {task: subject.name for task, subject in names.items()})


def _load_own(name: str, data: Path | None) -> Loaded:
    if data is not None:
        raise EvaluationError(
            f"--task {name} does not read local files; those that do are {', '.join(DATA_SETS)}. Leave out "
            "--task-data-path, or take one of them."
        )
    if name in DATA_SETS and not DATA_SETS[name].definitions:
        raise EvaluationError(f"--task {name} needs --task-data-path, the file with its questions.")
    if Path(name).is_file():
        return Loaded(name, _manager(""), None, {})
    manager = _manager(None)
    if name not in manager.all_tasks:
        raise EvaluationError(
            f"--task {name}: there is no such task. With local files there are {', '.join(DATA_SETS)}; `lm-eval ls "
            "tasks` lists those that lm-eval downloads."
        )
    return Loaded(name, manager, None, {})


def _manager(definitions: str | None) -> Any:
    import lm_eval.tasks

    if definitions is None:
        return lm_eval.tasks.TaskManager()
    folder = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(
        include_defaults=False, include_path=str(folder / definitions) if definitions else None
    )


def _task_name(data_set: DataSet, subject: Subject, manager: Any, data: Path) -> str:
    name = data_set.prefix + subject.name
    if data_set.definitions and name not in manager.all_subtasks:
        known = sorted(one.removeprefix(data_set.prefix) for one in manager.all_subtasks)
        raise EvaluationError(
            f"{data}: {data_set.title} has no subject {subject.name!r}, allowed: {', '.join(known)}. Rename its files."
        )
    return name


def _questions(subject: Subject, splits: tuple[str, str | None]) -> Callable[..., Any]:
    """What lm-eval calls for the data of a task, with the task's metadata."""

    def load(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        names = zip(splits, (subject.questions, subject.examples), strict=True)
        return DatasetDict({name: Dataset.from_list(rows) for name, rows in names if name and rows})

    return load
