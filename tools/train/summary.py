"""What a finished training comes to: runs/<name>/summary.json and the lines printed at the end."""

import json
import platform
import statistics
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from ascend_patch.runs.megatron_log import History
from tools.train.gemm import Mixtral, gemm_rate
from tools.train.settings import Command

VOCAB_SIZE = 32000  # of the tokenizer that tools.train.corpus prepares
WARM_UP = 2  # first iterations of a process, slower than the rest
PACKAGES = ("torch", "torch_npu", "megatron-core", "transformers", "numpy", "ascend-patch")


@dataclass(frozen=True)
class PatchReport:
    """The part of ascend_patch's own report that the summary repeats."""

    device: str
    megatron: str
    applied: int
    skipped: int

    @classmethod
    def read(cls, path: Path) -> "PatchReport":
        """Read the file that ASCEND_PATCH_REPORT named."""
        report = json.loads(path.read_text())
        return cls(
            device=report["device"].split()[0],
            megatron=report["megatron"].split()[0],
            applied=report["counts"]["applied"],
            skipped=report["counts"]["skipped"],
        )


def summarize(command: Command, history: History, report: PatchReport, threads: int) -> dict[str, Any]:
    """The figures of the run.

    Args:
        command: what was run.
        history: its whole log, with at least one iteration.
        report: what was patched.
        threads: computing threads of each process.
    """
    model = model_of(command)
    processes = command.number("--nproc-per-node") * command.number("--nnodes")
    losses = history.series("lm loss")[1]
    validations = history.validation_series()[1]
    tokens_per_iteration = command.number("--global-batch-size") * model.seq_length
    seconds = statistics.median([r.seconds for r in history.iterations.values()][WARM_UP:] or [0.0])
    tokens_per_second = tokens_per_iteration / seconds if seconds else None
    # The processes on a cpu share its cores; elsewhere each has a device of its own.
    rate = gemm_rate("cpu", threads * processes) if report.device == "cpu" else gemm_rate(report.device, 1) * processes
    return {
        "device": report.device,
        "processes": processes,
        "threads_per_process": threads,
        "versions": _versions(report),
        "iterations": max(history.iterations),
        "tokens": max(history.iterations) * tokens_per_iteration,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "validation_loss": validations[-1] if validations else None,
        "test_loss": history.test.loss if history.test else None,
        "tokens_per_second": tokens_per_second,
        "gemm_flops_per_second": rate,
        "gemm_fraction": tokens_per_second * model.flops_per_token / rate if tokens_per_second else None,
        "peak_memory_bytes": history.peak_bytes,
        "patches_applied": report.applied,
        "patches_skipped": report.skipped,
    }


def model_of(command: Command) -> Mixtral:
    """The sizes of the model that ``command`` trains, with the vocabulary of Mixtral's tokenizer."""
    names = [field.name for field in fields(Mixtral) if field.name != "vocab_size"]
    sizes = {name: command.number("--" + name.replace("_", "-")) for name in names}
    return Mixtral(**sizes, vocab_size=VOCAB_SIZE)


def text(summary: dict[str, Any]) -> str:
    """The summary in a few lines for people; peak memory is that of the first rank."""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    rows = [
        ("device", f"{summary['device']}, {summary['processes']} processes"),
        ("versions", versions),
        ("iterations", f"{summary['iterations']} ({summary['tokens']:,} tokens)"),
        ("loss", f"{summary['first_loss']:.3f} -> {summary['last_loss']:.3f}"),
        ("patches", f"{summary['patches_applied']} applied, {summary['patches_skipped']} skipped"),
    ]
    if summary["validation_loss"] is not None:
        rows.insert(4, ("validation", f"{summary['validation_loss']:.3f}"))
    if summary["tokens_per_second"]:
        speed = f"{summary['tokens_per_second']:,.0f} tokens/s"
        share = f"{summary['gemm_fraction']:.1%} of the {summary['gemm_flops_per_second'] / 1e9:,.0f} GFLOP/s"
        rows.insert(-1, ("speed", f"{speed}, {share} this machine multiplies matrices with"))
    if summary["peak_memory_bytes"]:
        rows.insert(-1, ("memory", f"{summary['peak_memory_bytes'] / 2**30:.2f} GiB a process"))
    return "\n".join(f"  {name:<11}{value}" for name, value in rows)


def _versions(report: PatchReport) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions | {"megatron-core": report.megatron}
