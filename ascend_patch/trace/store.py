"""Traces on disk: a folder for each step, in it a file for each rank.

``FOLDER/step0000001/rank00000.jsonl.gz`` is gzipped JSON lines: an object that describes the rank, then an array for
each record: the fields of :class:`Record`, then those of its :class:`Digest`. A file is written when the step has
ended, whole or not at all.
"""

import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ascend_patch.engine.errors import AscendPatchError

SCHEMA = 1
FORWARD, BACKWARD, GRADIENT = DIRECTIONS = ("forward", "backward", "gradient")
"""A module's output; the gradient of that output; a parameter's gradient, reduced. In order of execution."""

_EXPERTS = re.compile(r"(^|\.)experts(\.|$)")
_STEP, _RANK = re.compile(r"step(\d{7,})"), re.compile(r"rank(\d{5,})\.jsonl\.gz")


@dataclass(frozen=True)
class Layout:
    """How a model and its batches are spread over the ranks. Traces of equal layouts are compared rank by rank.

    Attributes:
        virtual: model chunks a rank.
        data: data parallel size, without context parallelism.
        micro_batches: a step, on each data parallel rank.
    """

    tensor: int
    pipeline: int
    virtual: int
    context: int
    data: int
    expert: int
    expert_tensor: int
    sequence_parallel: bool
    distributed_optimizer: bool
    micro_batch_size: int
    micro_batches: int

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def samples(self) -> int:
        """Of all data parallel ranks, in one step."""
        return self.micro_batch_size * self.micro_batches * self.data

    def __str__(self) -> str:
        sizes = {
            "TP": self.tensor,
            "PP": self.pipeline,
            "VPP": self.virtual,
            "CP": self.context,
            "DP": self.data,
            "EP": self.expert,
            "ETP": self.expert_tensor,
        }
        split = " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1)
        batches = f"{self.micro_batches} micro-batches of {self.micro_batch_size}"
        return f"{split}, {batches}" if split else batches


@dataclass(frozen=True)
class Coordinates:
    """A rank's place in each of the groups of :class:`Layout`."""

    tensor: int
    pipeline: int
    context: int
    data: int
    expert: int
    expert_tensor: int
    expert_data: int


@dataclass(frozen=True)
class Digest:
    """What is kept of a tensor. All but ``hash`` can be combined over its parts.

    Attributes:
        count: of elements.
        total: their sum.
        square: the sum of their squares.
        largest: the largest absolute value.
        hash: of their bytes, in order; "" of a combination.
    """

    count: int
    total: float
    square: float
    largest: float
    hash: str = ""

    @property
    def mean(self) -> float:
        """0 of nothing."""
        return self.total / self.count if self.count else 0.0

    @property
    def norm(self) -> float:
        """Euclidean."""
        return self.square**0.5

    def scaled(self, factor: float) -> "Digest":
        """Of the tensor times ``factor``, except for the hash."""
        return Digest(self.count, self.total * factor, self.square * factor**2, self.largest * abs(factor), self.hash)


class Record(NamedTuple):
    """One tensor of one rank.

    Attributes:
        direction: one of :data:`DIRECTIONS`.
        name: of the module or parameter, with the numbers that layers and experts have in the whole model. What a
            grouped linear layer computes for one expert is ``….experts.linear_fc1[EXPERT]``.
        output: which of the module's outputs.
        call: which call of the module within the micro-batch.
        micro_batch: which of the rank's, in the order of their forward passes; 0 of a parameter.
        chunk: which of the rank's model chunks.
        placement: of a parameter's gradient, the groups that it is split over, of "tp" and "dp"; "partial" if the
            ranks of the expert tensor parallel group hold terms of a sum.
    """

    direction: str
    name: str
    output: int
    call: int
    micro_batch: int
    chunk: int
    placement: tuple[str, ...]
    digest: Digest


@dataclass(frozen=True)
class RankTrace:
    """What one rank recorded of one step.

    Attributes:
        run: versions and device, for people.
        device: "cpu", "cuda" or "npu".
        records: in the order in which they were made.
    """

    step: int
    rank: int
    layout: Layout
    coordinates: Coordinates
    device: str
    run: dict[str, Any]
    records: tuple[Record, ...]


def is_expert(name: str) -> bool:
    """Whether a module or parameter belongs to routed experts, which see tokens of all expert parallel ranks."""
    return _EXPERTS.search(name) is not None


def write(folder: Path, trace: RankTrace) -> Path:
    """Write one rank's records of one step; returns the file."""
    path = file(folder, trace.step, trace.rank)
    head = {"schema": SCHEMA, **{field.name: getattr(trace, field.name) for field in fields(trace)}}
    head |= {"layout": asdict(trace.layout), "coordinates": asdict(trace.coordinates), "records": len(trace.records)}
    lines = [head, *([*record[:-1], *astuple(record.digest)] for record in trace.records)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with gzip.open(partial, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    os.replace(partial, path)
    return path


def file(folder: Path, step: int, rank: int) -> Path:
    """Where a rank's records of a step are."""
    return folder / f"step{step:07}" / f"rank{rank:05}.jsonl.gz"


def discard(folder: Path, steps: Iterable[int], rank: int) -> None:
    """Remove what an earlier run has left of these steps, so that it is not taken for this run's."""
    for step in steps:
        file(folder, step, rank).unlink(missing_ok=True)


def read(path: Path) -> RankTrace:
    """Read one file.

    Raises:
        AscendPatchError: it is not such a file, or of another version.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            head, *lines = map(json.loads, stream)
        if head["schema"] != SCHEMA:
            raise AscendPatchError(
                f"{path} has schema {head['schema']!r}; this version reads {SCHEMA}. Record the trace anew."
            )
        records = tuple(Record._make([*line[:6], tuple(line[6]), Digest(*line[7:])]) for line in lines)
        if len(records) != head["records"]:
            raise ValueError(f"{len(records)} of {head['records']} records")
        layout, coordinates = Layout(**head["layout"]), Coordinates(**head["coordinates"])
        return RankTrace(head["step"], head["rank"], layout, coordinates, head["device"], head["run"], records)
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise AscendPatchError(
            f"{path} is not a file of a trace, or damaged ({error}). Record the trace anew."
        ) from error


@dataclass(frozen=True)
class Trace:
    """A folder that a run wrote; its files are read when they are asked for."""

    folder: Path

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Those that every rank has finished.

        Raises:
            AscendPatchError: there are none.
        """
        missing = {step: self._missing(step) for step in self._found}
        whole = tuple(step for step, ranks in missing.items() if not ranks)
        if not whole:
            parts = "; ".join(f"step {step} lacks rank {', '.join(map(str, r))}" for step, r in missing.items())
            raise AscendPatchError(
                f"{self.folder} holds no whole step of a trace ({parts or 'no folder step0000001 or the like'}). Name "
                "the folder of ASCEND_PATCH_TRACE, after a run that finished the traced step."
            )
        return whole

    @property
    def unfinished(self) -> tuple[int, ...]:
        """Steps that some ranks did not finish."""
        return tuple(step for step in self._found if step not in self.steps)

    def ranks(self, step: int) -> Sequence[RankTrace]:
        """All ranks of a step, in order.

        Raises:
            AscendPatchError: the files belong to different runs.
        """
        ranks = [read(path) for path in self._files(step)]
        if len({rank.layout for rank in ranks}) > 1:
            raise AscendPatchError(
                f"{self.folder / f'step{step:07}'} mixes files of runs of different layouts. Delete it and trace anew."
            )
        return ranks

    def size(self, step: int) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self._files(step))

    @cached_property
    def _found(self) -> dict[int, dict[int, Path]]:
        """Step -> rank -> file."""
        return {
            int(match[1]): {int(found[1]): path for path, found in _matches(folder, _RANK)}
            for folder, match in _matches(self.folder, _STEP)
        }

    def _files(self, step: int) -> list[Path]:
        found = self._found[step]
        return [found[rank] for rank in range(read(found[0]).layout.world_size)]

    def _missing(self, step: int) -> list[int]:
        found = self._found[step]
        if not found:
            return [0]
        size = read(next(iter(found.values()))).layout.world_size
        return [rank for rank in range(size) if rank not in found]


def _matches(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """Entries of a folder whose whole name matches, sorted; none of a folder that is not there."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := pattern.fullmatch(path.name):
            yield path, match
