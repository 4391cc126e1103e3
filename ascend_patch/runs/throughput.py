"""How fast a run was: the figures that ModelLink's tables for Mixtral give."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from ascend_patch.runs.run import BATCH_SIZE, Run


@dataclass(frozen=True)
class Throughput:
    """Figures of a run; None where the log does not tell.

    Attributes:
        iterations: that the median is over.
        seconds: of one iteration, the median without those in which a process warms up.
        samples: sequences a second.
        tokens: tokens a second and device.
    """

    iterations: int
    seconds: float | None = None
    samples: float | None = None
    tokens: float | None = None


def throughput(run: Run, devices: int | None = None, seq_length: int | None = None) -> Throughput:
    """The throughput of a run.

    Args:
        devices: where the run did not record ``world_size``.
        seq_length: where it did not record ``seq_length``.
    """
    devices, seq_length = devices or run.number("world_size"), seq_length or run.number("seq_length")
    batches = run.samples.get(BATCH_SIZE)
    if not run.seconds:
        return Throughput(0)
    iterations = sum(len(sample.iterations) for sample in run.seconds)
    seconds = statistics.median(sample.value for sample in run.seconds)
    batch = batches[-1].value if batches else run.number("global_batch_size")
    samples = batch / seconds if batch else None
    tokens = samples * seq_length / devices if samples and seq_length and devices else None
    return Throughput(iterations, seconds, samples, tokens)
