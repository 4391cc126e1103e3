"""``python -m benchmarks.convert``: conversions of a checkpoint with Mixtral 8x7B's layers, beside ``cp`` of it.

Three ways, each in rounds: Hugging Face to Megatron, Megatron to Megatron in another layout, Megatron to Hugging Face.
Before every copy and every conversion the files that it reads are dropped from the page cache, and each ends when
what it wrote is on the disk. Most memory is the kernel's figure for the converting process (VmHWM).
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ascend_patch.commands.options import positive
from benchmarks import weights
from benchmarks.report import write_json
from benchmarks.statistics import Sample, ratios
from benchmarks.worker import ROOT, WorkerError

TARGET = 0.6
"""Throughput of a conversion, of that of ``cp``."""
ALLOWANCE = 2**30
"""Memory that a conversion may take beside the experts of one layer."""
SHARE_OF_DISK = 0.9
"""How much of the free disk may be used."""

MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Conversion:
    """One of the three ways.

    Attributes:
        title: for people.
        loader: of the command.
        options: of the command, beside the folders.
        source, result: names of the folders.
    """

    title: str
    loader: str
    options: tuple[str, ...]
    source: str
    result: str


@dataclass(frozen=True)
class Measured:
    """What the rounds of one way gave.

    Attributes:
        read, written: bytes of the source and of the result, which repeat what several ranks of format torch hold.
        copied, converted: seconds.
        ratio: bytes read and written a second by the conversion, of those by ``cp`` in the same round.
        peak: bytes, the most of all rounds.
    """

    title: str
    read: int
    written: int
    copied: Sample
    converted: Sample
    ratio: Sample
    peak: int


def conversions(checkpoint_format: str, layers: int) -> list[Conversion]:
    """The three ways, in the order that needs the fewest folders at a time."""
    to_megatron = ("--saver", "mixtral", "--ckpt-format", checkpoint_format)
    (first, first_flags), (second, second_flags) = (
        _layout(2, math.gcd(2, layers), 4),
        _layout(1, math.gcd(4, layers), 2),
    )
    back = ("--saver", "mixtral", "--save-model-type", "huggingface")
    return [
        Conversion(f"Hugging Face to {first}", "mixtral_hf", (*to_megatron, *first_flags), "hf", "first"),
        Conversion(f"{first} to {second}", "mixtral_mg", (*to_megatron, *second_flags), "first", "second"),
        Conversion(f"{second} to Hugging Face", "mixtral_mg", back, "second", "back"),
    ]


def measure(config: dict[str, Any], options: argparse.Namespace, folder: Path) -> list[Measured]:
    """All rounds of all ways, in ``folder``; at no time are there more than two copies of the weights.

    Raises:
        WorkerError: a process failed.
    """
    _run([sys.executable, "-m", "benchmarks.workers.random_weights", str(folder / "hf")], folder, json.dumps(config))
    found = []
    for way in conversions(options.ckpt_format, config["num_hidden_layers"]):
        found.append(_measure_way(way, options, folder))
        shutil.rmtree(folder / way.source)
    return found


def _measure_way(way: Conversion, options: argparse.Namespace, folder: Path) -> Measured:
    source, result, copy, report = (folder / name for name in (way.source, way.result, "copy", "report.json"))
    command = _command(way, report, source, result, options.workers)
    copied, converted, peaks = [], [], []
    for number in range(options.rounds):
        copied.append(_timed(source, lambda: _copy(source, copy)))
        shutil.rmtree(copy)
        if result.exists():
            shutil.rmtree(result)
        converted.append(_timed(source, lambda: _run(command, folder)))
        peaks.append(max(json.loads(report.read_text()).values()))
        _progress(f"{way.title}: round {number + 1} of {options.rounds}")
    read, written = (sum(file.stat().st_size for file in _files(each)) for each in (source, result))
    speeds = ratios([seconds * (read + written) / (2 * read) for seconds in copied], converted)
    return Measured(way.title, read, written, Sample.of(copied), Sample.of(converted), speeds, max(peaks))


def table(found: Sequence[Measured], config: dict[str, Any]) -> str:
    """The figures, and whether they are what they have to be."""
    bound = ALLOWANCE + weights.experts_size(config)
    lines = [f"{'':<32}{'cp':>9}{'conversion':>12}{'GB in':>6}{'GB out':>8}{'of cp':>8}{'peak MiB':>10}"]
    for way in found:
        lines.append(
            f"  {way.title:<30}{way.copied.median:>7.1f} s{way.converted.median:>10.1f} s"
            f"{way.read / 1e9:>6.1f}{way.written / 1e9:>8.1f}{way.ratio.median:>8.2f}{way.peak / 2**20:>10.0f}"
        )
    slowest, most = min(way.ratio.median for way in found), max(way.peak for way in found)
    lines.append(f"  throughput of cp's, the least: {slowest:.2f}, at least {TARGET}: {_verdict(slowest >= TARGET)}")
    lines.append(
        f"  memory, the most: {most / 2**20:.0f} MiB, at most 1 GiB + the experts of a layer "
        f"({bound / 2**20:.0f} MiB): {_verdict(most <= bound)}"
    )
    return "\n".join(lines)


def main() -> None:
    """See the module's docstring."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks: terminated"))  # so that the folder goes
    options.out.mkdir(parents=True, exist_ok=True)
    config = MIXTRAL_8X7B | {"num_hidden_layers": options.layers}
    free = shutil.disk_usage(options.out).free
    needed = 2 * weights.size(config)
    if needed > SHARE_OF_DISK * free:
        sys.exit(
            f"benchmarks: {options.layers} layers need {needed / 1e9:.1f} GB for two copies; {free / 1e9:.1f} GB are "
            f"free in {options.out}. Take fewer --layers, or another --out."
        )
    print(
        f"Mixtral 8x7B, {options.layers} layers, bfloat16: {weights.size(config) / 1e9:.1f} GB; {os.cpu_count()} "
        f"processors, {options.workers} workers, format {options.ckpt_format}, {options.rounds} rounds; sources are "
        "dropped from the page cache\n",
        flush=True,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="convert.", dir=options.out) as name:
            found = measure(config, options, Path(name))
    except WorkerError as error:
        sys.exit(f"benchmarks: {error}")
    print(table(found, config))
    results = options.out / "results.json"
    write_json(results, {"schema": 1, "layers": options.layers, "conversions": [asdict(way) for way in found]})
    print(f"\nall figures: {results}")


def _command(way: Conversion, report: Path, source: Path, result: Path, workers: int) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.workers.convert", str(report), "--model-type", "GPT"]
    command += ["--loader", way.loader, *way.options, "--workers", str(workers)]
    return [*command, "--load-dir", str(source), "--save-dir", str(result)]


def _layout(tensor: int, pipeline: int, expert: int) -> tuple[str, tuple[str, ...]]:
    """Name and flags."""
    sizes = {"tensor": tensor, "pipeline": pipeline, "expert": expert}
    flags = (word for name, size in sizes.items() for word in (f"--target-{name}-parallel-size", str(size)))
    return f"TP{tensor} PP{pipeline} EP{expert}", tuple(flags)


def _timed(source: Path, action: Callable[[], None]) -> float:
    """Seconds of ``action``, whose reads come from the disk."""
    for file in _files(source):
        _drop_from_page_cache(file)
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _copy(source: Path, result: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(result)], check=True)
    for file in _files(result):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _drop_from_page_cache(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # only pages that are on the disk can go
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _run(command: Sequence[str], folder: Path, text: str | None = None) -> None:
    log = folder / "log"
    with log.open("w") as stream:
        ended = subprocess.run(command, cwd=ROOT, input=text, text=True, stdout=stream, stderr=subprocess.STDOUT)
    if ended.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise WorkerError(f"{' '.join(command)} ended with exit code {ended.returncode}:\n{tail}")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.convert", description="Conversions of weights, beside cp.")
    parser.add_argument("--layers", type=positive, default=4, help="of the model; each has 2.9 GB")
    parser.add_argument("--rounds", type=positive, default=2, help="turns of cp and of each conversion")
    parser.add_argument("--ckpt-format", choices=("torch", "torch_dist"), default="torch")
    parser.add_argument("--workers", type=positive, default=len(os.sched_getaffinity(0)), help="of the conversion")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "convert", help="folder for the weights and the results"
    )
    return parser.parse_args()


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
