"""Real instructions, of package llamafactory: what people asked, and answers; fetched on first use, never kept here."""

import fcntl
import json
from functools import cache
from pathlib import Path

from tests.system_tests.real_text import DATA
from tools.train.corpus import LLAMAFACTORY, prepare_tokenizer
from tools.train.packages import fetch, read_members


@cache
def rows() -> tuple[dict[str, str], ...]:
    """999 of ``instruction``, ``input`` and ``output``."""
    DATA.mkdir(exist_ok=True)
    with (DATA / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker of pytest may be fetching it
        (content,) = read_members(fetch(LLAMAFACTORY, DATA / "packages"), "data/alpaca_en_demo.json").values()
    return tuple(json.loads(content))


@cache
def tokenizer() -> Path:
    """The folder of Mixtral's own."""
    DATA.mkdir(exist_ok=True)
    with (DATA / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return prepare_tokenizer(DATA)


def short(longest: int = 60) -> list[dict[str, str]]:
    """Those whose question and whose answer have at most so many characters."""
    asked = [row for row in rows() if len(row["instruction"]) <= longest and not row["input"]]
    return [row for row in asked if len(row["output"]) <= longest]


def write(file: Path, records: list[dict[str, str]]) -> Path:
    """``records`` as a file that ``MP_DATASET_TYPE=raw`` and ``tools/preprocess_data.py`` read; returns it."""
    file.write_text(json.dumps(records))
    return file
