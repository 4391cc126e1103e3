"""What a run computed, bit by bit: its logged scalars and the tensors of its checkpoints."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.checkpoint import FileSystemReader

SCALARS = ("lm loss", "grad-norm", "load_balancing_loss")
_RUN_STATE = ("common_state", "rerun_state_machine_state")  # paths and times


def scalars(folder: Path) -> dict[str, dict[int, str]]:
    """Name -> iteration -> value as a hexadecimal float, from TensorBoard's events (logs print six digits)."""
    events = _events(folder)
    return {name: {entry.step: entry.value.hex() for entry in events.Scalars(name)} for name in SCALARS}


def numbers(folder: Path, name: str) -> dict[int, float]:
    """Iteration -> logged scalar; of an iteration that a resumed run repeats, the later one."""
    return {entry.step: entry.value for entry in _events(folder).Scalars(name)}


def _events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def differing(folder: Path, other: Path, iterations: range) -> list[str]:
    """What was not logged the same in the iterations, and what is not the same in the checkpoint of the last."""
    return differing_scalars(folder, other, iterations) + differing_tensors(folder, other, iterations[-1])


def differing_scalars(folder: Path, other: Path, iterations: range) -> list[str]:
    """Names of what two runs, whose events are in ``events``, did not log the same, once for each such iteration."""
    logged, expected = (scalars(each / "events") for each in (folder, other))
    return [name for number in iterations for name in SCALARS if logged[name][number] != expected[name][number]]


def differing_tensors(folder: Path, other: Path, iteration: int) -> list[str]:
    """Names and places of what is not the same in two checkpoints.

    Raises:
        ValueError: they do not hold the same tensors, or next to none.
    """
    found, expected = (tensors(each, iteration) for each in (folder, other))
    if found.keys() != expected.keys() or len(found) <= 20:
        raise ValueError(f"{folder} has {len(found)} tensors, {other} {len(expected)}.")
    return [name for name in found if found[name] != expected[name]]


def tensors(checkpoint: Path, iteration: int) -> dict[str, str]:
    """Name and place -> hash of every tensor and state of an iteration: weights, optimizer, random numbers."""
    folder = checkpoint / f"iter_{iteration:07d}"
    if (folder / ".metadata").is_file():
        return _distributed(folder)
    return {
        f"{file.relative_to(folder)}: {name}": hashed
        for file in sorted(folder.rglob("*.pt"))
        for name, hashed in _leaves(torch.load(file, weights_only=False, mmap=True), "")
    }


def _distributed(folder: Path) -> dict[str, str]:
    found = {}
    for index, stored in FileSystemReader(folder).read_metadata().storage_data.items():
        if not index.fqn.startswith(_RUN_STATE):
            with (folder / stored.relative_path).open("rb") as file:
                file.seek(stored.offset)
                found[f"{index.fqn} at {index.offset}"] = hashlib.sha256(file.read(stored.length)).hexdigest()
    return found


def _leaves(value, name: str):
    if isinstance(value, torch.Tensor):
        yield name, hashlib.sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("args", *_RUN_STATE, "rerun_state_machine"):
                yield from _leaves(inner, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{name}/{place}")
    else:
        content = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        yield name, hashlib.sha256(content).hexdigest()
