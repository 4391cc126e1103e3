"""The prompts are lm-eval's own, and what cannot be evaluated is refused."""

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from ascend_patch.evaluation import tasks
from ascend_patch.evaluation.errors import EvaluationError
from tests.system_tests.evaluation import write_questions


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    return write_questions(tmp_path)


def prompts(name: str, data: Path, num_fewshot: int | None = None) -> list[tuple[str, str]]:
    """Contexts and continuations that lm-eval makes."""
    loaded = tasks.load(name, data, num_fewshot)
    found = []
    for task in loaded.manager.load([loaded.spec])["tasks"].values():
        task.set_fewshot_seed(1234)
        task.build_all_requests()
        found += [instance.args for instance in task.instances]
    return found


def test_mmlu(data: dict[str, Path]) -> None:
    """As published: five examples of the same subject, the letters as answers."""
    found = prompts("mmlu", data["mmlu"])
    assert len(found) == 2 * 7 * 4
    context, answer = found[0]
    assert context.startswith(
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "What is 0 of anatomy, then?\nA. 0\nB. 1, or\nC. 0\nD. none\nAnswer: A\n\n"
    )
    assert context.endswith("What is 0 of anatomy, then?\nA. 0\nB. 1, or\nC. 0\nD. none\nAnswer:")
    assert context.count("Answer:") == 6
    assert [answer for _, answer in found[:4]] == [" A", " B", " C", " D"]


def test_ceval(data: dict[str, Path]) -> None:
    """In Chinese."""
    context, _ = prompts("ceval", data["ceval"])[0]
    assert context.startswith("以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n")
    assert context.endswith("下列第0项正确的是\nA. 甲0\nB. 乙\nC. 丙\nD. 丁\n答案：")
    assert context.count("答案：") == 6


def test_boolq(data: dict[str, Path]) -> None:
    """No examples, or some of train.jsonl."""
    context = "The number 0 is what it is.\nQuestion: is 0 even?\nAnswer:"
    assert prompts("boolq", data["boolq"])[:2] == [(context, " no"), (context, " yes")]
    with pytest.raises(EvaluationError, match="boolq has 0 examples, and 2 come before each question"):
        prompts("boolq", data["boolq"], 2)
    (data["boolq"] / "train.jsonl").write_text('{"question": "q", "passage": "p", "answer": true}\n' * 4)
    assert prompts("boolq", data["boolq"], 2)[0][0].startswith("p\nQuestion: q?\nAnswer: yes\n\np\n")


def test_mmlu_1000(tmp_path: Path) -> None:
    question = "Why?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps({"question": question, "answer": "B"}))
    found = prompts("mmlu_1000", file)
    assert found[1] == (f"The following are multiple choice questions (with answers).\n\n{question}", " B")


def test_what_is_refused(data: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("test", "dev"):
        file = data["mmlu"] / split / f"anatomy_{split}.csv"
        file.rename(file.with_name(f"astrology_{split}.csv"))
    with pytest.raises(EvaluationError, match=r"MMLU has no subject 'astrology', allowed: abstract_algebra, anatomy, "):
        tasks.load("mmlu", data["mmlu"])
    with pytest.raises(EvaluationError, match="--task gsm8k does not read local files; those that do are mmlu, "):
        tasks.load("gsm8k", data["mmlu"])
    with pytest.raises(EvaluationError, match="--task mmlu_1000 needs --task-data-path"):
        tasks.load("mmlu_1000", None)
    manager = tasks._manager("mmlu/default")  # that of all tasks reads thousands of files
    monkeypatch.setattr(tasks, "_manager", lambda _: manager)
    with pytest.raises(EvaluationError, match="--task mlmu: there is no such task"):
        tasks.load("mlmu", None)
    assert tasks.load("mmlu_anatomy", None).spec == "mmlu_anatomy"
