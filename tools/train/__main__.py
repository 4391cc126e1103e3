"""``python -m tools.train [FLAG…]``: what `make train` runs; further flags go to upstream's pretrain_gpt.py.

NAME picks the folder under runs/, DATA a .jsonl file of the user's own, FRESH=1 throws away what is there.
The sizes of the model and the training come from the environment too; see examples/mixtral/README.md.
"""

import json
import os
import shutil
import sys
from collections import deque
from pathlib import Path

from rich.console import Console

from ascend_patch.runs.megatron_log import History, Iteration, Validation
from tools.preprocess_data import DataError
from tools.train import figure, summary
from tools.train.corpus import prepare_dataset, prepare_tokenizer
from tools.train.failure import find_failure
from tools.train.launch import run_and_follow
from tools.train.progress import TrainingProgress
from tools.train.settings import ROOT, SCRIPT, Command, Settings, SettingsError
from tools.train.tokenizer import write_file

KEPT = 2000  # last lines of the log, searched for what made it fail
FEW_DOCUMENTS = 40  # with fewer, 5 % of them may be none


def main(flags: list[str]) -> int:
    """Prepare, train, report. Returns the exit status."""
    console = Console(soft_wrap=True)
    try:
        settings = Settings.from_environment(os.environ)
        environ = _prepare(settings, console)
        command = Command.of(SCRIPT, environ, flags)
        resumed = _open_run(settings, command)
    except (SettingsError, DataError) as error:
        print(f"make train: {error}", file=sys.stderr)
        return 1
    if resumed >= command.number("--train-iters"):
        console.print(f"{shown(settings.folder)} is trained to iteration {resumed} already.")
        console.print("TRAIN_ITERS=… trains it further, FRESH=1 starts anew, NAME=… starts another run.")
        return 0
    return _train(settings, command, flags, environ, resumed, console)


def shown(path: Path) -> Path:
    """``path`` as people write it here."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _prepare(settings: Settings, console: Console) -> dict[str, str]:
    """Make data and tokenizer; returns the environment that tells the script where everything lies."""
    data = ROOT / "data"
    console.print(f"Text: {settings.data or 'Shakespeare and some encyclopedia articles'}")
    dataset = prepare_dataset(data, settings.data)
    console.print(f"      {dataset.documents:,} documents, {dataset.tokens:,} tokens: {shown(dataset.prefix)}")
    # What the user may set as well.
    defaults = {"OMP_NUM_THREADS": "1", "SPLIT": "95,5,0"}
    if dataset.documents < FEW_DOCUMENTS:
        console.print("      too few documents to keep some for validation")
        defaults |= {"SPLIT": "100,0,0", "EVAL_ITERS": "0"}
    own = {
        "DATA_PATH": str(dataset.prefix),
        "TOKENIZER_MODEL": str(prepare_tokenizer(data)),
        "CKPT_SAVE_DIR": str(settings.folder / "checkpoint"),
        "TENSORBOARD_DIR": str(settings.folder / "tensorboard"),
        "DATA_CACHE_PATH": str(data / "cache"),
        "ASCEND_PATCH_REPORT": str(settings.folder / "patches.json"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }
    return defaults | dict(os.environ) | own


def _open_run(settings: Settings, command: Command) -> int:
    """Make the folder of the run; returns the iteration of the checkpoint in it, 0 without one.

    Raises:
        SettingsError: the folder holds a run of another model or text.
    """
    folder = settings.folder
    if settings.fresh and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "run.json"
    if record.is_file():
        before = json.loads(record.read_text())
        changed = [
            f"{flag} {before.get(flag)} -> {now}" for flag, now in command.identity.items() if before.get(flag) != now
        ]
        if changed:
            raise SettingsError(
                f"{shown(folder)} was started with other settings ({'; '.join(changed)}). "
                "Give this run a name of its own (NAME=…), or FRESH=1 to throw the old one away."
            )
    else:
        write_file(record, json.dumps(command.identity, indent=2).encode())
    latest = folder / "checkpoint" / "latest_checkpointed_iteration.txt"
    return int(latest.read_text()) if latest.is_file() else 0


def _train(
    settings: Settings,
    command: Command,
    flags: list[str],
    environ: dict[str, str],
    resumed: int,
    console: Console,
) -> int:
    folder = settings.folder
    log = folder / "train.log"
    history = History()
    if resumed:
        console.print(f"Resuming {shown(folder)} from iteration {resumed}")
        flags = [*flags, "--override-opt_param-scheduler"]  # a changed TRAIN_ITERS stretches the schedule
    else:
        log.unlink(missing_ok=True)
    if log.is_file():
        with log.open(encoding="utf-8", errors="replace") as lines:
            history = History.of(lines)

    recent: deque[str] = deque(maxlen=KEPT)
    tokens = command.number("--global-batch-size") * command.number("--seq-length")
    announced: list[str] = []
    with TrainingProgress(console, tokens) as progress:

        def on_line(line: str) -> None:
            recent.append(line)
            record = history.add(line)
            if isinstance(record, Iteration | Validation):
                progress.show(record)
            elif line.startswith("ascend_patch ") and not announced:
                announced.append(line)  # helpers of a checkpoint's writing announce themselves again
                progress.notice(line.rstrip())

        try:
            status = run_and_follow(["bash", str(SCRIPT), *flags], environ, log, on_line)
        except KeyboardInterrupt:
            print("make train: interrupted. The next one resumes from the last checkpoint.", file=sys.stderr)
            return 130
    if status != 0 or not history.iterations:
        failure = find_failure(recent)
        print("\n".join(failure.excerpt), file=sys.stderr)
        print(f"\nmake train: the training failed. {failure.reason}", file=sys.stderr)
        print(f"            The whole log: {shown(log)}", file=sys.stderr)
        return status or 1
    _report(settings, command, history, int(environ["OMP_NUM_THREADS"]), console)
    return 0


def _report(settings: Settings, command: Command, history: History, threads: int, console: Console) -> None:
    folder = settings.folder
    patches = summary.PatchReport.read(folder / "patches.json")
    result = summary.summarize(command, history, patches, threads)
    write_file(folder / "summary.json", (json.dumps(result, indent=2) + "\n").encode())
    title = f"{settings.name}: {result['iterations']} iterations on {result['device']}"
    figure.draw(history, title, folder / "loss.png")
    console.print(summary.text(result), highlight=False)
    console.print(f"{shown(folder)}: loss.png summary.json patches.json train.log tensorboard/ checkpoint/")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
