"""What an evaluation has computed so far: a killed one goes on from there.

One JSON object a line: first whose results they are, then a result each, under a hash of what was asked.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ascend_patch.checkpoint.journal import append_line, differences, whole_lines
from ascend_patch.evaluation.errors import EvaluationError


class Journal:
    """The journal in ``file``, made on first use and locked until it is closed; a context manager.

    Args:
        owner: what the results depend on, besides the requests: the model and the task; as JSON has it.

    Raises:
        EvaluationError: it is another owner's, damaged, cannot be written, or another process writes it.
    """

    def __init__(self, file: Path, owner: Mapping[str, Any]) -> None:
        self._path = file
        self.results: dict[str, Any] = {}
        """Key -> what was computed."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise EvaluationError(f"{file} cannot be written: {error.strerror}. Name another --output.") from error
        try:
            self._lock()
            self._read(owner)
        except BaseException:
            os.close(self._file)
            raise

    def add(self, key: str, result: Any) -> None:
        """Keep a result."""
        self.results[key] = result
        self._append({"key": key, "result": result})

    def remove(self) -> None:
        """It is not needed any more."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EvaluationError(
                f"{self._path} is being written by another evaluation. Let it finish, or name another --output."
            ) from error

    def _read(self, owner: Mapping[str, Any]) -> None:
        lines = whole_lines(self._path, self._file)
        if not lines:
            self._append({"owner": owner})
            return
        try:
            before, *entries = [json.loads(line) for line in lines]
            self.results = {entry["key"]: entry["result"] for entry in entries}
            before = before["owner"]
        except (ValueError, LookupError, TypeError) as error:
            raise EvaluationError(f"{self._path} is damaged. Remove it, and evaluate again.") from error
        if changed := differences(before, json.loads(json.dumps(owner))):
            raise EvaluationError(
                f"{self._path} has the results of another evaluation: {'; '.join(changed[:5])}. Remove it to begin "
                "anew, or name another --output."
            )

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            append_line(self._file, entry)
        except OSError as error:
            raise EvaluationError(f"{self._path} cannot be written: {error.strerror}.") from error


def keys(kind: str, requests: Sequence[Any]) -> list[str]:
    """A key for each request; those of equal ones differ, because what is drawn at random is wanted anew each time.

    Args:
        kind: of all the requests.
        requests: as JSON has them.
    """
    seen: Counter[str] = Counter()
    found = []
    for request in requests:
        same = _hash(json.dumps([kind, request], sort_keys=True))
        found.append(_hash(f"{same} {seen[same]}"))
        seen[same] += 1
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
