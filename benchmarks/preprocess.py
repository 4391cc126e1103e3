"""``python -m benchmarks.preprocess``: text into indexed datasets, beside upstream's own tool.

Both tokenize the same file with the same tokenizer and number of worker processes, as whole commands, in turns, and
must write the same bytes. Each also runs on a file of one document in every round: what that takes is the start, mostly
imports, which a larger corpus would not notice. It is subtracted from the CPU time, where other work on the machine
does not hide the difference.

The corpus is small, so that most of our time goes into words that are new to a worker. Of a large one it is less:
``--repeat 4`` shows how far that goes, as in the second to fourth copy no word is new.

Upstream's tool is the script of a checkout (``--megatron-path``), or what the script does, with the classes of the
installed Megatron-LM.
"""

import argparse
import filecmp
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ascend_patch.commands.options import positive
from benchmarks.report import write_json
from benchmarks.statistics import Sample, ratios
from benchmarks.worker import ROOT, WorkerError

TARGET = 2.0
"""Tokens a second, of upstream's."""
MOST_NOISE = 0.5
"""Of a ratio that says something."""


@dataclass(frozen=True)
class Contestant:
    """A tool.

    Attributes:
        command, flags: what is run; the names of the input and of the output come between.
        environment: what is set for it.
        positional: whether these two have no flags.
    """

    key: str
    title: str
    command: Sequence[str]
    flags: Sequence[str]
    environment: Mapping[str, str]
    positional: bool = False

    def run(self, source: Path, prefix: Path) -> tuple[float, float]:
        """Seconds, and CPU seconds of all its processes.

        Raises:
            WorkerError: it failed.
        """
        files = (
            [str(source), str(prefix)] if self.positional else ["--input", str(source), "--output-prefix", str(prefix)]
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        ended = subprocess.run(
            [*self.command, *files, *self.flags],
            cwd=ROOT,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if ended.returncode:
            raise WorkerError(f"{self.title} failed:\n{ended.stderr[-2000:]}")
        return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@dataclass(frozen=True)
class Times:
    """Of one contestant, a number a round.

    Attributes:
        seconds, cpu_seconds: of the whole corpus.
        start_cpu_seconds: of one document.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    start_cpu_seconds: list[float]

    def rates(self, tokens: int) -> list[float]:
        """Tokens a second."""
        return [tokens / seconds for seconds in self.seconds]

    def cpu_rates(self, tokens: int) -> list[float]:
        """Tokens a CPU second, without the start."""
        pairs = zip(self.cpu_seconds, self.start_cpu_seconds, strict=True)
        return [tokens / (whole - start) for whole, start in pairs]


def main() -> None:
    """See the module's docstring."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        try:
            _measure(options, Path(folder))
        except WorkerError as error:
            sys.exit(f"benchmarks: {error}")


def _measure(options: argparse.Namespace, folder: Path) -> None:
    corpus, tokenizer = _corpus(options, folder)
    one = folder / "one.jsonl"
    with corpus.open(encoding="utf-8") as lines:
        one.write_text(next(lines), encoding="utf-8")
    contestants = _contestants(options, tokenizer)
    times = {contestant.key: Times([], [], []) for contestant in contestants}
    for turn in range(options.rounds):
        for contestant in contestants if turn % 2 == 0 else contestants[::-1]:
            kept = times[contestant.key]
            _, start_cpu = contestant.run(one, folder / contestant.key)
            seconds, cpu = contestant.run(corpus, folder / contestant.key)
            kept.seconds.append(seconds)
            kept.cpu_seconds.append(cpu)
            kept.start_cpu_seconds.append(start_cpu)
        _same_bytes(folder, contestants)
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
    tokens = (folder / "b_text_document.bin").stat().st_size // 2
    print(
        f"{corpus.stat().st_size / 1e6:.1f} MB of text, {tokens:,} tokens, {options.workers} workers, "
        f"{options.rounds} rounds, load average {os.getloadavg()[0]:.1f}; both wrote the same bytes\n"
    )
    print(_table(contestants, times, tokens))
    results = options.out / "preprocess.json"
    content = {"tokens": tokens, "workers": options.workers, "upstream": contestants[0].title}
    write_json(results, content | {"times": {key: asdict(value) for key, value in times.items()}})
    print(f"\nall figures: {results}")


def _table(contestants: Sequence[Contestant], times: Mapping[str, Times], tokens: int) -> str:
    lines = [f"{'tokens':<58}{'a second':>10}{'noise':>8}{'a CPU second':>14}{'noise':>8}"]
    for contestant in contestants:
        speed = Sample.of(times[contestant.key].rates(tokens))
        cpu = Sample.of(times[contestant.key].cpu_rates(tokens))
        lines.append(
            f"  {contestant.key}  {contestant.title:<53}{speed.median:>10,.0f}{speed.noise:>8.0%}"
            f"{cpu.median:>14,.0f}{cpu.noise:>8.0%}"
        )
    a, b = times["a"], times["b"]
    for title, ours, theirs in (
        ("tokens a second of whole commands", b.rates(tokens), a.rates(tokens)),
        ("tokens a CPU second without the start", b.cpu_rates(tokens), a.cpu_rates(tokens)),
    ):
        ratio = ratios(ours, theirs)
        verdict = "met" if ratio.median >= TARGET else "MISSED"
        if min(*ours, *theirs) <= 0 or ratio.noise > MOST_NOISE:
            verdict = "NOT RESOLVED, too little work for the noise; use --repeat or a larger --corpus"
        lines.append(
            f"  b/a, {title} = {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f} over {ratio.count} rounds), "
            f"at least {TARGET}: {verdict}"
        )
    return "\n".join(lines)


def _contestants(options: argparse.Namespace, tokenizer: Path) -> list[Contestant]:
    python, workers = sys.executable, str(options.workers)
    plain = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    flags = ["--append-eod", "--workers", workers, "--tokenizer-model", str(tokenizer)]
    if options.megatron_path:
        script = options.megatron_path / "tools" / "preprocess_data.py"
        if not script.is_file():
            raise WorkerError(f"--megatron-path {options.megatron_path}: there is no {script}.")
        theirs = Contestant(
            "a",
            f"{options.megatron_path.name}/tools/preprocess_data.py",
            [python, str(script)],
            [*flags, "--tokenizer-type", "HuggingFaceTokenizer"],
            plain | {"PYTHONPATH": str(options.megatron_path)},
        )
    else:
        title = "what upstream's script does, by the installed wheel"
        command = [python, "-m", "benchmarks.workers.upstream_preprocess"]
        theirs = Contestant("a", title, command, [str(tokenizer), workers], plain, positional=True)
    script = ROOT / "tools" / "preprocess_data.py"
    return [theirs, Contestant("b", "tools/preprocess_data.py", [python, str(script)], flags, plain)]


def _corpus(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The file of lines and the tokenizer's folder."""
    from tools.train.corpus import built_in_documents, prepare_tokenizer

    data = ROOT / "data"
    tokenizer = options.tokenizer or prepare_tokenizer(data)
    if options.corpus:
        return options.corpus, tokenizer
    path = folder / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        lines = [json.dumps({"text": text}) + "\n" for text in built_in_documents(data)]
        file.writelines(lines * options.repeat)
    return path, tokenizer


def _same_bytes(folder: Path, contestants: Sequence[Contestant]) -> None:
    for suffix in (".bin", ".idx"):
        first, second = (folder / f"{contestant.key}_text_document{suffix}" for contestant in contestants)
        if not filecmp.cmp(first, second, shallow=False):
            raise WorkerError(f"The two wrote different {suffix} files: the times mean nothing.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.preprocess", description=__doc__)
    parser.add_argument("--megatron-path", type=Path, help="a Megatron-LM checkout, for upstream's own script")
    parser.add_argument("--corpus", type=Path, help="a .jsonl file with texts (default: what make train reads)")
    parser.add_argument("--repeat", type=positive, default=1, help="copies of the default corpus in the file")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer's folder (default: Mixtral's)")
    parser.add_argument("--workers", type=positive, default=len(os.sched_getaffinity(0)), help="processes of each")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark", help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
