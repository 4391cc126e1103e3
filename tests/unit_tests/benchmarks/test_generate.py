"""The benchmark of generation: what it makes of the answers, with workers that only say how fast they are."""

import os
from pathlib import Path

from benchmarks import generate
from benchmarks.worker import Worker

SAYS = """
from benchmarks.gate import answer_on_standard_streams

def prepare():
    print("a library prints something")
    def answer(request):
        batch, length = len(request["prompts"]), len(request["prompts"][0])
        return {{
            "prefill": {prefill}, "decode": {decode}, "decoded": batch * (request["new"] - 1), "peak": length << 20
        }}
    return answer

answer_on_standard_streams(prepare)
"""


def _cell(folder: Path, ours: dict, theirs: dict) -> generate.Cell:
    with (
        Worker(["-c", SAYS.format(**ours)], os.environ, folder / "ours") as first,
        Worker(["-c", SAYS.format(**theirs)], os.environ, folder / "theirs") as second,
    ):
        return generate.measure({generate.OURS: first, generate.THEIRS: second}, 32, 11, 2, rounds=2)


def test_tokens_a_second_and_ratios(tmp_path: Path) -> None:
    cell = _cell(tmp_path, {"prefill": 0.5, "decode": 2.0}, {"prefill": 1.0, "decode": 3.0})
    assert cell.prefill[generate.OURS].median == 2 * 32 / 0.5
    assert cell.decode[generate.THEIRS].median == 2 * 10 / 3.0
    assert (cell.prefill_ratio.median, cell.decode_ratio.median) == (2.0, 1.5)
    assert cell.peak == {generate.OURS: 32.0, generate.THEIRS: 32.0}
    assert cell.ahead
    assert generate.row(cell).split() == [
        *("[32,", "11]", "x", "2"),
        *("128", "64", "2.00"),
        *("10", "7", "1.50"),
        *("32", "32"),
    ]


def test_behind_in_one_is_behind(tmp_path: Path) -> None:
    cell = _cell(tmp_path, {"prefill": 0.5, "decode": 2.0}, {"prefill": 1.0, "decode": 1.9})
    assert not cell.ahead
    assert generate.row(cell).endswith("behind")


def test_prompts_are_the_same_for_both_and_new_each_round() -> None:
    first, again, other = (generate._request(5, 3, 2, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [len(prompt) for prompt in first["prompts"]] == [5, 5]
