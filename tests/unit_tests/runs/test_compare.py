"""Pairs, tolerances and verdicts."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_patch.runs.compare import Pair, Tolerance, compare, different_arguments, pairs_of
from ascend_patch.runs.read import read
from ascend_patch.runs.run import GRAD_NORM, LOSS, Run, RunError, Sample, iterations_text, ranges, without_overlap
from tests.unit_tests.runs.logs import LOGS, Upstream, header, write

EXACT = {"": Tolerance()}


def run_of(losses, **more):
    samples = {LOSS: [Sample(i, i, value) for i, value in losses.items()]}
    return Run(Path("run.log"), samples | more)


@st.composite
def spans(draw):
    """Adjoining and disjoint spans of iterations, with the mean of ``value`` over each."""
    borders = sorted(draw(st.sets(st.integers(0, 40), min_size=2, max_size=12)))
    kept = [pair for pair in pairwise(borders) if draw(st.integers(0, 4))]
    return [Sample(a + 1, b, sum(map(value, range(a + 1, b + 1))) / (b - a), b - a) for a, b in kept]


def value(iteration):
    return 10 - math.sin(iteration)


@settings(deadline=None)
@given(spans(), spans())
def test_pairs_are_over_the_same_iterations_and_none_is_missed(a, b):
    pairs = list(pairs_of(a, b))
    for pair in pairs:
        assert pair.a.iterations == pair.b.iterations
        assert pair.a.value == pytest.approx(pair.b.value)
    for one, other in pairwise(pairs):
        assert one.a.last < other.a.first
    same = {(x.first, x.last) for x in a} & {(x.first, x.last) for x in b}
    assert same <= {(pair.a.first, pair.a.last) for pair in pairs}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9)), max_size=12))
def test_without_overlap_the_later_counts(numbers):
    samples = [Sample(first, first + length, float(order)) for order, (first, length) in enumerate(numbers)]
    kept = without_overlap(samples)
    for one, other in pairwise(kept):
        assert one.last < other.first
    if samples:
        assert samples[-1] in kept
    for sample in samples:
        later = [k for k in kept if not set(k.iterations).isdisjoint(sample.iterations)]
        assert sample in kept or any(k.value > sample.value for k in later)


@pytest.mark.parametrize(
    ("a", "b", "tolerance", "within"),
    [
        (2.0, 2.0199, Tolerance(0.01), True),
        (2.0, 2.03, Tolerance(0.01), False),
        (2.0, 1.97, Tolerance(0.01), False),
        (2.0, 2.03, Tolerance(0.01, 0.01), True),
        (0.0, 0.001, Tolerance(1.0), False),
        (0.0, 0.001, Tolerance(0.0, 0.001), True),
        (2.0, 2.0, Tolerance(), True),
        (2.0, math.nan, Tolerance(1e9, 1e9), False),
        (math.nan, 2.0, Tolerance(1e9, 1e9), False),
        (2.0, math.inf, Tolerance(1e9, 1e9), False),
        (math.inf, 2.0, Tolerance(0.5), False),
        (math.inf, -math.inf, Tolerance(0.5), False),
        (math.nan, math.nan, Tolerance(), True),
        (math.inf, math.inf, Tolerance(), True),
    ],
)
def test_tolerance(a, b, tolerance, within):
    assert Pair(Sample(1, 1, a), Sample(1, 1, b)).is_within(tolerance) is within


def test_rounding_in_print_is_a_difference_only_between_numbers_that_were_printed_alike():
    printed, computed = Sample(1, 1, 2.0, rounding=1e-6), Sample(1, 1, 2.000001, parts=2, rounding=2e-6)
    assert Pair(printed, computed).is_within(Tolerance())
    assert not Pair(printed, Sample(1, 1, 2.000001, rounding=1e-6)).is_within(Tolerance())
    assert not Pair(printed, Sample(1, 1, 2.000004, parts=2, rounding=2e-6)).is_within(Tolerance())


@pytest.mark.parametrize(
    ("a", "b"), [("cpu", "resumed"), ("resumed", "cpu"), ("cpu", "every_3"), ("every_3", "resumed")]
)
def test_real_logs_of_one_training_are_equal(a, b):
    comparison = compare(read(LOGS / f"{a}.log"), read(LOGS / f"{b}.log"), EXACT)
    assert comparison.first_beyond is None
    assert comparison.quantities[0].name == LOSS
    assert comparison.quantities[0].compared == (15 if "every_3" in (a, b) else 16)
    assert [quantity.name for quantity in comparison.quantities[1:]] == [
        GRAD_NORM,
        "lm loss test",
        "lm loss validation",
        "load_balancing_loss",
    ]


def test_the_mean_that_upstream_prints_second_is_said_of_both_runs_alike():
    runs = [read(LOGS / f"{name}.log") for name in ("cpu", "npu")]
    (first,), (second,) = (run.notes for run in runs)
    assert first == second and "losses of iteration 2 are means with the first iteration" in first


def test_a_fault_is_found_where_it_begins(tmp_path):
    """From iteration 5 on the loss is 3 % off: not in the second line, although that line is printed 1.5 % off."""
    losses = {i: 8.0 - i / 10 for i in range(1, 11)}
    faulty = {i: loss * (1.03 if i >= 5 else 1) for i, loss in losses.items()}
    a = write(tmp_path, "a", header(log_interval=1) + Upstream().process(losses))
    resumed = {i: loss for i, loss in faulty.items() if i > 5}
    b = write(
        tmp_path,
        "b",
        header(log_interval=1)
        + Upstream().process({i: faulty[i] for i in range(1, 6)})
        + header(5, log_interval=1)
        + Upstream(clock=60).process(resumed),
    )
    comparison = compare(read(a), read(b))
    assert comparison.first_beyond.name == LOSS
    pair = comparison.first_beyond.first_beyond
    assert (pair.a.last, pair.relative) == (5, pytest.approx(0.03))
    assert compare(read(a), read(b), {"": Tolerance(0.0301), GRAD_NORM: None}).first_beyond is None


def test_the_earliest_quantity_is_named():
    norms = [Sample(i, i, 1.0) for i in range(1, 6)]
    off = [Sample(i, i, 2.0 if i >= 3 else 1.0) for i in range(1, 6)]
    a = run_of({i: 5.0 for i in range(1, 6)}, **{GRAD_NORM: norms})
    b = run_of({i: 5.0 if i < 4 else 6.0 for i in range(1, 6)}, **{GRAD_NORM: off})
    comparison = compare(a, b)
    assert comparison.first_beyond.name == GRAD_NORM
    assert [quantity.first_beyond.a.last for quantity in comparison.quantities] == [4, 3]
    assert compare(a, b, {GRAD_NORM: None}).first_beyond.name == LOSS


def test_tolerances_by_quantity():
    norms = {GRAD_NORM: [Sample(1, 1, 1.0)], "params norm": [Sample(1, 1, 4.0)]}
    a, b = run_of({1: 5.0}, **norms), run_of({1: 5.0}, **norms)
    assert [str(q.tolerance) for q in compare(a, b).quantities] == ["1 %", "10 % + 0.001"]
    tolerances = {"": Tolerance(0.5), GRAD_NORM: Tolerance(), "params norm": Tolerance(0, 2.0)}
    assert [str(q.tolerance) for q in compare(a, b, tolerances).quantities] == ["50 %", "exact", "2"]
    with pytest.raises(RunError, match="`z_loss`, which cannot be compared. Both runs have: lm loss, grad"):
        compare(a, b, {"z_loss": Tolerance()})


def test_what_is_missing_is_said():
    a = run_of({i: 5.0 for i in range(1, 11)})
    b = run_of({i: 5.0 for i in range(3, 15) if i not in (5, 6, 8)})
    comparison = compare(a, b)
    assert comparison.quantities[0].compared == 5
    assert list(comparison.notes) == [
        "A has losses of iterations 1-10, B of 3-14: compared are 3-10",
        "B has no loss of iterations 5-6, 8",
    ]


def test_means_over_different_iterations_are_said():
    a = Run(Path("a"), {LOSS: [Sample(1, 1, 5.0), Sample(2, 4, 5.0, 3)]})
    b = Run(Path("b"), {LOSS: [Sample(1, 1, 5.0), Sample(2, 3, 5.0, 2)]})
    notes = compare(a, b).notes
    assert "not compared, because the runs logged means over different iterations: iterations 2-3" in notes


def test_runs_without_common_iterations():
    with pytest.raises(RunError, match=r"has losses of iterations 1, .* of 2-3\."):
        compare(run_of({1: 5.0}), run_of({2: 5.0, 3: 5.0}))


def test_nan_on_both_sides_is_said_and_nan_on_one_side_is_beyond():
    a, b = run_of({1: 5.0, 2: math.nan, 3: math.nan}), run_of({1: 5.0, 2: math.nan, 3: 5.0})
    comparison = compare(a, b)
    assert comparison.first_beyond.first_beyond.a.last == 3
    assert comparison.first_beyond.largest.a.last == 3
    assert "the loss is not a finite number in either run: iteration 2" in comparison.notes


def test_settings_that_differ_are_said():
    rate = "learning rate"
    a = run_of({1: 5.0, 2: 5.0}, **{rate: [Sample(1, 1, 1e-3), Sample(2, 2, 1e-3)]})
    b = run_of({1: 5.0, 2: 5.0}, **{rate: [Sample(1, 1, 1e-3), Sample(2, 2, 2e-3)]})
    comparison = compare(a, b)
    assert comparison.settings == ["learning rate differs from iteration 2 on: 0.001 in A, 0.002 in B"]
    assert comparison.first_beyond is None


def test_arguments_that_differ_are_said_unless_they_are_of_no_consequence():
    comparison = compare(read(LOGS / "cpu.log"), read(LOGS / "npu.log"))
    assert different_arguments(comparison.a, comparison.b) == {
        "bf16": ("False", "True"),
        "params_dtype": ("torch.float32", "torch.bfloat16"),
    }
    assert comparison.settings[-1].startswith("arguments differ (A / B): bf16 False / True, params_dtype")


def test_numbers_for_people():
    assert ranges([3, 1, 2, 7, 9, 10]) == "1-3, 7, 9-10"
    assert ranges(range(0, 100, 2), 2) == "0, 2 and 48 more"
    assert iterations_text([4]) == "iteration 4" and iterations_text({4, 5}) == "iterations 4-5"
