"""The training benchmark of one dtype: run the rounds, compare the contestants."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contestants import contestants, environment
from benchmarks.statistics import Sample, ratios
from benchmarks.worker import Worker, WorkerError
from benchmarks.workload import MODEL, TOKENS_PER_STEP

LIMIT = "d"


@dataclass(frozen=True)
class Row:
    """One contestant's result.

    Attributes:
        key, title: as in :class:`benchmarks.contestants.Contestant`.
        tokens_per_second: over the rounds.
        cpu_seconds: processor time a step, of all threads; less sensitive to what else the machine does.
        gemm_fraction: model FLOPs a second over those of the matrix product alone, round by round.
        loss: of the last step, to see that all train the same.
    """

    key: str
    title: str
    tokens_per_second: Sample
    cpu_seconds: Sample
    gemm_fraction: Sample
    loss: float


@dataclass(frozen=True)
class Comparison:
    """What one dtype came to; ``ratios`` maps ``"b/a"`` and ``"b/c"`` to the ratio of tokens a second."""

    dtype: str
    rows: tuple[Row, ...]
    ratios: dict[str, Sample]
    flops_per_second: Sample


@dataclass(frozen=True)
class Plan:
    """How much is measured, and on what terms.

    Attributes:
        rounds: turns of each contestant.
        steps: training steps in a turn.
        warm_up: steps before the first round, not counted. The memory of a process takes about ten to settle.
        threads: of each process.
        same_malloc: as in :func:`benchmarks.contestants.contestants`.
    """

    rounds: int
    steps: int
    warm_up: int
    threads: int
    same_malloc: bool


def measure(dtype: str, plan: Plan, folder: Path, progress: Callable[[str], None]) -> Comparison:
    """Start every contestant, let them take turns, and compare.

    Args:
        dtype: "bf16" or "fp32".
        plan: how much of it.
        folder: gets a log file for each contestant.
        progress: called with a line now and then.

    Raises:
        WorkerError: a contestant failed, or two do not train models of the same size.
    """
    entrants = contestants(dtype, plan.same_malloc)
    answers: dict[str, list[dict[str, Any]]] = {entrant.key: [] for entrant in entrants}
    with ExitStack() as stack:
        workers = {}
        for entrant in entrants:
            log = folder / f"{dtype}-{entrant.key}.log"
            workers[entrant.key] = stack.enter_context(Worker(entrant.command, environment(entrant, plan.threads), log))
            workers[entrant.key].run(1 if entrant.key == LIMIT else plan.warm_up)
            progress(f"{dtype}: {entrant.key} is warm ({entrant.title})")
        for turn in range(plan.rounds):
            for key, worker in workers.items():
                answers[key].append(worker.run(1 if key == LIMIT else plan.steps))
            progress(f"{dtype}: round {turn + 1} of {plan.rounds}")
    return compare(dtype, {entrant.key: entrant.title for entrant in entrants}, answers)


def compare(dtype: str, titles: Mapping[str, str], answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> Comparison:
    """The workers' answers, one a round and contestant, as a :class:`Comparison`."""
    sizes = {answer["parameters"] for key in titles if key != LIMIT for answer in answers[key]}
    if len(sizes) > 1:
        raise WorkerError(f"The contestants train models of different sizes: {sorted(sizes)} parameters.")
    limit = [answer["flops_per_second"] for answer in answers[LIMIT]]
    speed = {
        key: [TOKENS_PER_STEP * len(answer["seconds"]) / sum(answer["seconds"]) for answer in answers[key]]
        for key in titles
        if key != LIMIT
    }
    rows = tuple(
        Row(
            key,
            titles[key],
            tokens_per_second=Sample.of(rates),
            cpu_seconds=Sample.of([value for answer in answers[key] for value in answer["cpu_seconds"]]),
            gemm_fraction=ratios([rate * MODEL.flops_per_token for rate in rates], limit),
            loss=answers[key][-1]["loss"],
        )
        for key, rates in speed.items()
    )
    return Comparison(
        dtype,
        rows,
        {"b/a": ratios(speed["b"], speed["a"]), "b/c": ratios(speed["b"], speed["c"])},
        Sample.of(limit),
    )
