"""`make evaluate` up to the launch, and the script that it and users run."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import upstream
from tools import evaluate
from tools.train.settings import Settings, SettingsError

SCRIPT = upstream.ROOT / "tasks" / "evaluation" / "evaluate_mixtral_8x7b_ptd.sh"


def dry_run(*flags: str, **variables: str) -> list[str]:
    """The words of the command that the script would run."""
    environ = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **variables}
    result = subprocess.run(["bash", str(SCRIPT), *flags], env=environ, capture_output=True, text=True, check=True)
    return shlex.split(result.stdout)


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_the_script() -> None:
    """The published way: a task, its folder, a checkpoint, a tokenizer; the user's flags come last."""
    words = dry_run("--limit", "3", TASK="ceval", DATA_PATH="./here", CHECKPOINT="./c", TOKENIZER_PATH="./t", TP="4")
    assert any(word.endswith("tasks/evaluation/evaluate.py") for word in words)
    found = [value(words, flag) for flag in ("--task", "--task-data-path", "--load", "--tokenizer-model")]
    assert found == ["ceval", "./here", "./c", "./t"]
    assert value(words, "--tensor-model-parallel-size") == "4"
    assert words[-2:] == ["--limit", "3"]


def test_the_scripts_defaults() -> None:
    """MMLU in a folder of that name; without a folder lm-eval takes its own data."""
    assert value(dry_run(), "--task-data-path") == "./mmlu/"
    assert value(dry_run(), "--tokenizer-model") == "./model_from_hf/Mixtral-8x7B"
    assert "--task-data-path" not in dry_run(TASK="gsm8k", DATA_PATH="")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("tools.train.settings.ROOT", tmp_path)
    monkeypatch.setattr(evaluate, "ROOT", tmp_path)
    monkeypatch.setattr(evaluate, "prepare_tokenizer", lambda data: data / "tokenizer")
    return Settings("small", None, False)


def test_the_trained_models_sizes(settings: Settings) -> None:
    """They are those that the training recorded."""
    (settings.folder / "checkpoint").mkdir(parents=True)
    (settings.folder / "checkpoint" / "latest_checkpointed_iteration.txt").write_text("20")
    flags = {flag: str(number) for number, flag in enumerate(dict.fromkeys(evaluate.SIZES.values()), 10)}
    (settings.folder / "run.json").write_text(json.dumps(flags))
    environ = evaluate.environment(settings, Path("questions.jsonl"))
    words = dry_run(**{name: environ[name] for name in environ.keys() - os.environ.keys()})
    assert {flag: value(words, flag) for flag in flags} == flags
    assert value(words, "--task") == "mmlu_1000"
    assert value(words, "--load") == str(settings.folder / "checkpoint")


def test_without_a_checkpoint(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="has no checkpoint. Run make train first"):
        evaluate.environment(settings, Path("questions.jsonl"))
