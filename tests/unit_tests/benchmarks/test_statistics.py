import pytest

from benchmarks.statistics import Sample, ratios


def test_median_and_quartiles() -> None:
    sample = Sample.of([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (sample.median, sample.low, sample.high, sample.count) == (3.0, 2.0, 4.0, 5)
    assert sample.noise == pytest.approx(1 / 3)


def test_one_measurement_has_no_noise() -> None:
    assert Sample.of([7.0]) == Sample(7.0, 7.0, 7.0, 1)
    assert Sample.of([7.0]).noise == 0.0


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="no measurement"):
        Sample.of([])


def test_a_round_that_was_slow_for_both_does_not_change_the_ratio() -> None:
    assert ratios([30.0, 3.0, 30.0], [20.0, 2.0, 20.0]) == Sample(1.5, 1.5, 1.5, 3)


def test_rounds_are_compared_in_pairs_only() -> None:
    with pytest.raises(ValueError, match="2 rounds cannot be compared with 1"):
        ratios([1.0, 2.0], [1.0])
