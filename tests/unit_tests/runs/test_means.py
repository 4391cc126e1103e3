"""Whatever upstream adds up, skips and fails to reset, the samples are what the iterations were."""

import math
from itertools import chain

import pytest
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st

from ascend_patch.runs.means import log_interval, samples_of
from ascend_patch.runs.megatron_log import History
from ascend_patch.runs.run import LOSS
from tests.unit_tests.runs.logs import LOGS, Upstream, header


@st.composite
def trainings(draw):
    """Interval, release, and the processes: the iteration each resumed from, its losses and skipped iterations."""
    interval, microseconds = draw(st.integers(1, 5)), draw(st.booleans())
    processes, end = [], draw(st.integers(0, 30))
    for _ in range(draw(st.integers(1, 3))):
        loaded = draw(st.integers(0, end))
        end = loaded + draw(st.integers(1, 25))
        losses = {i: draw(st.floats(0.01, 20)) for i in range(loaded + 1, end + 1)}
        skipped = frozenset(i for i in losses if draw(st.integers(0, 9)) == 0)
        processes.append((loaded, losses, skipped))
    return interval, microseconds, processes


def check(history: History, processes):
    """Each sample is the mean of what the latest process that logged it trained."""
    latest = {}
    logged = [process for process in history.processes if process.lines]
    for process, (_, losses, skipped) in zip(logged, processes, strict=True):
        latest |= {line.iteration: (losses, skipped) for line in process.lines}
    found = samples_of(history)
    for sample in found.quantities.get(LOSS, []):
        losses, skipped = latest[sample.last]
        trained = [losses[i] for i in sample.iterations if i not in skipped]
        assert sample.count == len(trained), sample
        assert abs(sample.value - sum(trained) / len(trained)) <= sample.rounding * 1.001, (sample, trained)
    return found


@settings(deadline=None)
@given(trainings(), st.data())
def test_samples_are_the_iterations_means(training, data):
    interval, microseconds, processes = training
    upstream = Upstream(interval, microseconds, shows_zero=microseconds)
    lines, trained, whole = [], [], 0
    for process in processes:
        loaded, losses, skipped = process
        printed = upstream.process(losses, skipped)
        lost = data.draw(st.sets(st.integers(0, max(0, len(printed) - 1)), max_size=3))
        whole += len(printed)
        printed = [line for position, line in enumerate(printed) if position not in lost]
        lines += header(loaded, log_interval=interval) + printed
        trained += [process] * bool(printed)
    note("\n".join(lines))
    history = History.of(lines)
    assert log_interval(history) == interval
    found = check(history, trained)
    if sum(" iteration " in line and "|" in line for line in lines) == whole:
        assert not found.unknown


@settings(deadline=None)
@given(trainings())
def test_samples_without_headers(training):
    """Only the lines of training, as the last of several nodes prints them, from the first process's start on."""
    interval, microseconds, processes = training
    loaded, losses, skipped = processes[0]
    assume(loaded == 0 or loaded >= interval)  # the first line of an old release is taken for that of a fresh process
    lines = Upstream(interval, microseconds, shows_zero=microseconds).process(losses, skipped)
    note("\n".join(lines))
    history = History.of(lines)
    if history.processes:
        check(history, processes[:1])


@settings(deadline=None)
@given(trainings(), st.integers(1, 10))
def test_samples_of_a_log_without_its_beginning(training, cut):
    interval, microseconds, processes = training
    loaded, losses, skipped = processes[0]
    assume(loaded == 0 or loaded >= interval)
    lines = Upstream(interval, microseconds, shows_zero=microseconds).process(losses, skipped)[cut:]
    note("\n".join(lines))
    history = History.of(lines)
    if history.processes:
        check(history, processes[:1])


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 5))
def test_every_iteration_of_a_whole_log_is_known(iterations, interval):
    losses = {i: 10.0 - i / 10 for i in range(1, iterations + 1)}
    history = History.of(header(log_interval=interval) + Upstream(interval).process(losses))
    known = list(chain.from_iterable(sample.iterations for sample in samples_of(history).quantities[LOSS]))
    assert known == list(range(1, max(1, iterations // interval * interval) + 1))


def test_the_real_logs_agree_where_they_are_of_one_training():
    """An undisturbed run, a resumed one, and one that logs every third iteration."""
    read = {name: samples_of(History.of((LOGS / f"{name}.log").open())) for name in ("cpu", "resumed", "every_3")}
    whole = {sample.last: sample for sample in read["cpu"].quantities[LOSS]}
    assert sorted(whole) == list(range(1, 17))
    for sample in read["resumed"].quantities[LOSS]:
        assert abs(sample.value - whole[sample.last].value) <= sample.rounding + whole[sample.last].rounding
    assert read["resumed"].taken_apart == {2, 10} and read["cpu"].taken_apart == {2}
    spans = [(sample.first, sample.last) for sample in read["every_3"].quantities[LOSS]]
    assert spans == [(1, 1), (2, 3), (4, 6), (7, 9), (10, 12), (13, 15)]
    for sample in read["every_3"].quantities[LOSS]:
        mean = sum(whole[i].value for i in sample.iterations) / len(sample.iterations)
        assert sample.value == pytest.approx(mean, abs=2e-6)


def test_the_second_printed_loss_is_not_the_second_loss():
    """The premise: in the real log it is the mean of the first two, as the resumed run shows for iteration 10."""
    whole, resumed = (History.of((LOGS / f"{name}.log").open()) for name in ("cpu", "resumed"))
    ninth, tenth = (whole.iterations[i].loss for i in (9, 10))
    assert resumed.iterations[9].loss == ninth
    assert resumed.iterations[10].loss == pytest.approx((ninth + tenth) / 2, abs=2e-6) != tenth


def test_a_loss_that_is_no_number_is_left_out_of_the_line_and_known_as_nan():
    losses = {1: 5.0, 2: 4.0, 3: math.nan, 4: 3.0}
    lines = header(log_interval=1) + Upstream().process(losses)
    assert "lm loss" not in lines[-2]
    samples = {sample.last: sample.value for sample in samples_of(History.of(lines)).quantities[LOSS]}
    assert math.isnan(samples.pop(3))
    assert samples == pytest.approx({1: 5.0, 2: 4.0, 4: 3.0})


@pytest.mark.parametrize("skipped", [frozenset(), frozenset({2}), frozenset({1, 2})])
def test_a_fresh_process_whose_first_line_is_lost(skipped):
    """Its second line looks like the first of a process that resumed, and is the mean of two."""
    fresh = Upstream().process({1: 5.0, 2: 4.0, 3: 9.0, 4: 3.0}, skipped)[1:]
    found = samples_of(History.of(header(log_interval=1) + fresh))
    assert found.unknown == {2, 3}
    assert [(sample.last, sample.count) for sample in found.quantities[LOSS]] == [(4, 1)]


def test_a_skipped_iteration_has_no_loss_even_where_zero_is_printed():
    lines = header(log_interval=1) + Upstream().process({1: 5.0, 2: 4.0, 3: 9.0, 4: 3.0}, frozenset({3}))
    assert "lm loss: 0.000000E+00" in lines[-2]
    assert [sample.last for sample in samples_of(History.of(lines)).quantities[LOSS]] == [1, 2, 4]


def test_times_of_iterations_in_which_a_process_warms_up_do_not_count():
    upstream = Upstream()
    lines = header(log_interval=1) + upstream.process(dict.fromkeys(range(1, 6), 5.0), seconds=0.5)
    lines += header(4, log_interval=1) + upstream.process(dict.fromkeys(range(5, 9), 5.0), seconds=0.25)
    found = samples_of(History.of(lines)).seconds
    assert [(sample.last, sample.value) for sample in found] == [(3, 0.5), (4, 0.5), (7, 0.25), (8, 0.25)]
