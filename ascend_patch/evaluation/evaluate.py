"""An evaluation, from the task's name to the file with its results."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.utils import make_table

from ascend_patch.engine.report import write_text
from ascend_patch.evaluation import report
from ascend_patch.evaluation.errors import EvaluationError
from ascend_patch.evaluation.journal import Journal
from ascend_patch.evaluation.lm import MegatronLM, Model
from ascend_patch.evaluation.tasks import DataSet, load


@dataclass(frozen=True)
class Options:
    """What is evaluated.

    Raises:
        EvaluationError: a number is out of its range.
    """

    task: str
    data: Path | None
    """Local files of the task; None: what lm-eval takes."""
    output: Path
    limit: int | None = None
    """Questions of each subject; None: all."""
    num_fewshot: int | None = None
    """Examples before each question; None: as the task has it."""

    def __post_init__(self) -> None:
        for name, value, least in (("--limit", self.limit, 1), ("--num-fewshot", self.num_fewshot, 0)):
            if value is not None and value < least:
                raise EvaluationError(f"{name} is {value}, allowed: {least} or more.")


def evaluate(options: Options, model: Model, tokenizer: Any, identity: dict[str, Any], device: str) -> str:
    """Evaluate, or go on where an earlier evaluation was killed; write ``options.output``.

    Args:
        identity: of the model and its weights, as JSON has it; what was computed with another one is not used.
        device: its name, for the table.

    Returns:
        Tables for people.

    Raises:
        EvaluationError: the task, its files or the journal of an earlier evaluation cannot be used.
    """
    loaded = load(options.task, options.data, options.num_fewshot)
    owner = {"model": identity, "task": options.task}
    with Journal(options.output.with_name(options.output.name + ".journal"), owner) as journal:
        results = simple_evaluate(
            model=MegatronLM(model, tokenizer, journal),
            tasks=[loaded.spec],
            task_manager=loaded.manager,
            num_fewshot=options.num_fewshot if loaded.data_set is None else None,
            limit=options.limit,
        )
        if loaded.data_set is None:
            found, text = _own(results)
        else:
            found, text = _of_files(loaded.data_set, loaded.subjects, results, device)
        found = owner | {"device": device, "limit": options.limit, "num_fewshot": options.num_fewshot} | found
        write_text(options.output, json.dumps(found, indent=2, ensure_ascii=False, default=str) + "\n")
        journal.remove()
    return text


def _own(results: Any) -> tuple[dict[str, Any], str]:
    """JSON and text of a task that is all lm-eval's."""
    kept = {name: results[name] for name in ("results", "groups", "n-samples", "n-shot", "versions") if name in results}
    return kept, make_table(results).strip()


def _of_files(data_set: DataSet, names: Mapping[str, str], results: Any, device: str) -> tuple[dict[str, Any], str]:
    """JSON and text of a data set whose files were read here."""
    subjects = report.accuracies(names, results)
    whole = report.total(data_set.title, subjects)
    found = {
        "questions": whole.questions,
        "accuracy": whole.fraction,
        "reference": {"accuracy": data_set.reference, "source": data_set.source},
        "subjects": {one.name: {"questions": one.questions, "accuracy": one.fraction} for one in subjects},
        "answers": report.answers(names, results),
    }
    tables = [report.subject_table(subjects)] if len(subjects) > 1 else []
    tables.append(report.summary_table(whole, data_set.reference, device))
    if data_set.reference is not None:
        tables.append(f"Reference: Mixtral 8x7B, {data_set.source}.")
    return found, "\n\n".join(tables)
