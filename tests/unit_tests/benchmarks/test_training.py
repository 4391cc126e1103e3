import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.activation import ActivationCost
from benchmarks.contestants import NEEDED_TO_START, contestants, environment
from benchmarks.statistics import Sample
from benchmarks.training import Comparison, compare
from benchmarks.worker import WorkerError
from benchmarks.workload import MODEL, TOKENS_PER_STEP, RandomTokens

TITLES = {"a": "stock", "b": "patched", "c": "other", "d": "limit"}


def answer(seconds: float, parameters: int = 10, loss: float = 1.0) -> dict[str, Any]:
    return {"seconds": [seconds], "cpu_seconds": [2 * seconds], "parameters": parameters, "loss": loss}


def limit(flops_per_second: float) -> dict[str, Any]:
    return {"seconds": [1.0], "cpu_seconds": [2.0], "flops_per_second": flops_per_second}


def comparison() -> Comparison:
    """Two rounds; in the second the machine was half as fast for everybody."""
    rate = MODEL.flops_per_token * TOKENS_PER_STEP
    return compare(
        "bf16",
        TITLES,
        {
            "a": [answer(4.0), answer(8.0)],
            "b": [answer(2.0), answer(4.0, loss=0.5)],
            "c": [answer(1.0), answer(2.0)],
            "d": [limit(rate), limit(rate / 2)],
        },
    )


def test_ratios_and_fractions_are_taken_round_by_round() -> None:
    result = comparison()
    assert result.ratios == {"b/a": Sample(2.0, 2.0, 2.0, 2), "b/c": Sample(0.5, 0.5, 0.5, 2)}
    stock, patched, _ = result.rows
    assert stock.tokens_per_second.median == pytest.approx(TOKENS_PER_STEP * (1 / 4 + 1 / 8) / 2)
    assert patched.gemm_fraction == Sample(0.5, 0.5, 0.5, 2)
    assert patched.cpu_seconds.median == 6.0
    assert patched.loss == 0.5


def test_models_of_different_sizes_are_not_compared() -> None:
    answers = {"a": [answer(1.0)], "b": [answer(1.0)], "c": [answer(1.0, parameters=11)], "d": [limit(1.0)]}
    with pytest.raises(WorkerError, match=r"\[10, 11\]"):
        compare("bf16", TITLES, answers)


def test_the_table_says_which_targets_are_missed() -> None:
    table = report.training_table(comparison())
    assert "b/a = 2.00 (2.00 to 2.00 over 2 rounds), at least 1.5: met" in table
    assert "b/c = 0.50 (0.50 to 0.50 over 2 rounds), at least 1.0: MISSED" in table


def test_results_are_json(tmp_path: Path) -> None:
    second = Sample.of([1.0])
    path = tmp_path / "results.json"
    report.write_json(path, report.as_dict({"threads": 2}, [comparison()], ActivationCost(second, second, second)))
    content = json.loads(path.read_text())
    assert content["training"][0]["ratios"]["b/a"]["median"] == 2.0
    assert content["activation"]["difference"]["count"] == 1
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]


def test_stock_upstream_has_every_patch_off_that_it_can_start_without() -> None:
    from ascend_patch.features import PATCHES

    stock, patched, *_ = contestants("bf16")
    variables = environment(stock, 2, {"ASCEND_PATCH_OPS": "adam=reference", "HOME": "/"})
    left_on = {patch.id for patch in PATCHES} - set(variables["ASCEND_PATCH_DISABLE"].split(","))
    assert left_on == NEEDED_TO_START
    assert "ASCEND_PATCH_DISABLE" not in environment(patched, 2, {})
    assert variables["HOME"] == "/" and "ASCEND_PATCH_OPS" not in variables


def test_settings_of_malloc_are_part_of_what_is_measured_unless_all_get_them() -> None:
    stock, patched, other, _ = contestants("bf16")
    assert "--glibc-malloc" in stock.command and "--glibc-malloc" not in patched.command
    assert not other.environment and stock.environment["THP_MEM_ALLOC_ENABLE"] == "0"
    stock, _, other, _ = contestants("bf16", same_malloc=True)
    assert "--glibc-malloc" not in stock.command
    assert "THP_MEM_ALLOC_ENABLE" not in stock.environment
    malloc = {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"}
    assert set(other.environment) == {*malloc, "THP_MEM_ALLOC_ENABLE"}


def test_dtype_is_the_only_difference_between_the_benchmarks() -> None:
    bf16, fp32 = (contestants(dtype)[1].command for dtype in ("bf16", "fp32"))
    assert tuple(word for word in bf16 if word != "--bf16") == fp32


def test_tokens_are_the_same_in_every_process() -> None:
    first, again = RandomTokens(10)[3], RandomTokens(10)[3]
    assert first["tokens"].equal(again["tokens"])
    assert not first["tokens"].equal(RandomTokens(10)[4]["tokens"])
    assert first["tokens"][1:].equal(first["labels"][:-1])
    assert int(first["tokens"].max()) < MODEL.vocab_size
