"""What is written is read again; what is not whole is not taken for a trace."""

import gzip
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.trace import store
from ascend_patch.trace.store import Digest, Record, Trace, is_expert
from tests.unit_tests.trace.runs import Computation, layout


def write(folder: Path, *steps: int, **sizes: int) -> list[store.RankTrace]:
    ranks = Computation(7).trace(layout(**sizes))
    for step in steps:
        for rank in ranks:
            store.write(folder, replace(rank, step=step))
    return ranks


def test_written_and_read(tmp_path: Path) -> None:
    ranks = write(tmp_path, 1, 12, data=2, tensor=2)
    trace = Trace(tmp_path)
    assert trace.steps == (1, 12)
    assert trace.unfinished == ()
    assert trace.ranks(1) == ranks
    assert [rank.step for rank in trace.ranks(12)] == [12] * 4
    assert trace.size(1) == sum(file.stat().st_size for file in (tmp_path / "step0000001").iterdir())
    assert not [file for file in tmp_path.rglob("*") if file.name.startswith(".")]


@given(st.floats(), st.floats())
def test_every_number_is_read_as_it_was(total: float, largest: float) -> None:
    (rank,) = Computation(8).trace(layout())
    record = Record("forward", "decoder", 0, 0, 0, 0, ("partial",), Digest(3, total, 1e-300, largest, "00ff"))
    with TemporaryDirectory() as folder:
        found = store.read(store.write(Path(folder), replace(rank, records=(record,)))).records
    assert repr(found) == repr((record,))


def test_a_step_that_some_ranks_did_not_finish_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, data=2)
    store.file(tmp_path, 2, 1).unlink()
    trace = Trace(tmp_path)
    assert (trace.steps, trace.unfinished) == ((1,), (2,))
    store.file(tmp_path, 1, 0).unlink()
    with pytest.raises(AscendPatchError, match="holds no whole step .*step 1 lacks rank 0; step 2 lacks rank 1"):
        _ = Trace(tmp_path).steps
    with pytest.raises(AscendPatchError, match="no folder step0000001 or the like"):
        _ = Trace(tmp_path / "nowhere").steps


def test_files_of_a_larger_run_are_left_alone(tmp_path: Path) -> None:
    """A run with fewer ranks was traced into the same folder."""
    write(tmp_path, 1, data=4)
    ranks = write(tmp_path, 1, data=2)
    assert Trace(tmp_path).ranks(1) == ranks
    store.write(tmp_path, Computation(7).trace(layout(tensor=2))[1])
    with pytest.raises(AscendPatchError, match="mixes files of runs of different layouts"):
        Trace(tmp_path).ranks(1)


def test_discard(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, data=2)
    store.discard(tmp_path, [2, 3, 4], 1)
    trace = Trace(tmp_path)
    assert (trace.steps, trace.unfinished) == ((1,), (2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"schema":1', '"schema":99', 1), "has schema 99; this version reads 1"),
        (lambda text: text[: text.rindex("[")], "records"),
        (lambda text: text[: len(text) // 2], "is not a file of a trace, or damaged"),
        (lambda text: "", "is not a file of a trace, or damaged"),
        (lambda text: "{}", "is not a file of a trace, or damaged"),
    ],
)
def test_damaged(tmp_path: Path, change, message: str) -> None:
    write(tmp_path, 1)
    path = store.file(tmp_path, 1, 0)
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()).decode()).encode()))
    with pytest.raises(AscendPatchError, match=message):
        store.read(path)
    path.write_bytes(path.read_bytes()[:-9])  # cut off
    with pytest.raises(AscendPatchError, match="Record the trace anew"):
        store.read(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("decoder.layers.0.mlp.experts", True),
        ("decoder.layers.0.mlp.experts.linear_fc1[3]", True),
        ("decoder.layers.0.mlp.experts.local_experts.3.linear_fc1.weight", True),
        ("decoder.layers.0.mlp.shared_experts.linear_fc1", False),
        ("decoder.layers.0.mlp.router", False),
    ],
)
def test_experts_by_name(name: str, expected: bool) -> None:
    assert is_expert(name) is expected


def test_digest() -> None:
    digest = Digest(4, 2.0, 9.0, 3.0, "ab")
    assert (digest.mean, digest.norm) == (0.5, 3.0)
    assert digest.scaled(-2.0) == Digest(4, -4.0, 36.0, 6.0, "ab")
    assert Digest(0, 0.0, 0.0, 0.0).mean == 0
    assert math.isnan(Digest(1, math.nan, math.nan, math.nan).norm)
