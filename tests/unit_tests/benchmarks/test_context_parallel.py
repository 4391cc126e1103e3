"""The table of memory by number of ranks, from figures made up here; and that what is counted falls with the ranks."""

import pytest

from benchmarks.context_parallel import MEASURES, TYPES, count, table
from benchmarks.workload import ATTENTION_HEADS


def test_what_is_left_of_one_rank():
    one = {1024: {"kept": 2**21, "peak": 2**22}, 2048: {"kept": 2**22, "peak": 2**23}}
    four = {1024: {"kept": 2**18, "peak": 2**20}, 2048: {"kept": 2**20, "peak": 3 * 2**20}}
    head, *rows = table("p2p", {1: one, 4: four}).splitlines()
    assert head.startswith("p2p, simulated device")
    assert [row.split() for row in rows] == [
        [*["kept", "between", "forward", "and", "backward"], "CP1", "CP4"],
        ["1,024", "tokens", "2.00", "1.000x", "0.25", "0.125x"],
        ["2,048", "tokens", "4.00", "1.000x", "1.00", "0.250x"],
        [*["the", "most", "at", "any", "time"], "CP1", "CP4"],
        ["1,024", "tokens", "4.00", "1.000x", "1.00", "0.250x"],
        ["2,048", "tokens", "8.00", "1.000x", "3.00", "0.375x"],
    ]


LENGTH = 32768
"""Long enough that what does not grow with the sequence is little."""


@pytest.mark.npu
@pytest.mark.usefixtures("npu_device")
def test_half_is_kept(tmp_path):
    """Of what one rank keeps: queries, keys, values, outputs, and sums and maxima of the scores, eight times each."""
    heads, groups, size = ATTENTION_HEADS
    whole = LENGTH * (2 * (2 * heads + 2 * groups) * size + 2 * 8 * heads * 4)
    half = count("p2p", 2, [LENGTH], tmp_path)[LENGTH]
    assert whole / 3 < half["kept"] <= whole / 2
    assert half["kept"] < half["peak"]


@pytest.mark.npu
@pytest.mark.slow
@pytest.mark.usefixtures("npu_device")
@pytest.mark.parametrize("kind", TYPES)
def test_memory_falls_with_the_ranks(tmp_path, kind):
    one, two, four, eight = (count(kind, ranks, [LENGTH], tmp_path)[LENGTH] for ranks in (1, 2, 4, 8))
    assert one["peak"] > two["peak"] > four["peak"] > eight["peak"]
    if kind == "p2p":
        for whole, half in ((two, four), (four, eight)):
            for measure in MEASURES:
                assert half[measure] == pytest.approx(whole[measure] / 2, rel=0.06)
