"""The log parser, on lines as upstream prints them."""

import math

import pytest

from ascend_patch.runs.megatron_log import History, Iteration, Memory, Validation, parse_line
from tests.unit_tests.runs.logs import LOGS, header

ITERATION = (
    " [2026-01-02 10:10:11.279882] iteration        4/       6 | consumed samples:           64 | "
    "elapsed time per iteration (ms): 6804.0 | throughput per GPU (TFLOP/s/GPU): 0.0 | "
    "learning rate: 3.468100E-04 | global batch size:    16 | lm loss: 9.709315E+00 | "
    "load_balancing_loss: 1.238619E+00 | loss scale: 1.0 | grad norm: 2.530 | "
    "number of skipped iterations:   0 | number of nan iterations:   0 |"
)
VALIDATION = " validation loss at iteration 3 | lm loss value: 9.742449E+00 | lm loss PPL: 1.702415E+04 | "
FINAL = " validation loss at iteration 6 on validation set | lm loss value: 9.476127E+00 | lm loss PPL: 1.3E+04 | "
TEST = " validation loss at iteration 6 on test set | lm loss value: 9.375219E+00 | lm loss PPL: 1.179250E+04 | "
MEMORY = (
    "[Rank 0] (after save_checkpoint for iteration 6) memory (MB) | allocated: 2367.17 | "
    "max allocated: 2491.99 | reserved: 2367.17 | max reserved: 2491.99"
)


def test_an_iteration():
    record = parse_line(ITERATION)
    assert isinstance(record, Iteration)
    assert (record.iteration, record.last) == (4, 6)
    assert record.loss == 9.709315
    assert record.seconds == 6.804
    assert record.quantities == {
        "consumed samples": 64,
        "elapsed time per iteration (ms)": 6804.0,
        "throughput per GPU (TFLOP/s/GPU)": 0.0,
        "learning rate": 3.4681e-4,
        "global batch size": 16,
        "lm loss": 9.709315,
        "load_balancing_loss": 1.238619,
        "loss scale": 1.0,
        "grad norm": 2.53,
        "number of skipped iterations": 0,
        "number of nan iterations": 0,
    }


@pytest.mark.parametrize("prefix", ["[default1]:", "[rank1]: ", ""])
def test_a_prefix_of_torchrun_does_not_matter(prefix):
    assert parse_line(prefix + ITERATION) == parse_line(ITERATION)


def test_a_skipped_iteration_has_no_loss():
    record = parse_line(ITERATION.replace("lm loss: 9.709315E+00 | ", ""))
    assert isinstance(record, Iteration)
    assert record.loss is None


def test_nan():
    record = parse_line(ITERATION.replace("grad norm: 2.530", "grad norm: nan"))
    assert isinstance(record, Iteration)
    assert math.isnan(record.quantities["grad norm"])


def test_validations():
    assert parse_line(VALIDATION) == Validation(3, "", 9.742449)
    assert parse_line(FINAL) == Validation(6, "validation", 9.476127)
    assert parse_line(TEST) == Validation(6, "test", 9.375219)


def test_memory_is_in_bytes():
    assert parse_line(MEMORY) == Memory(0, int(2491.99 * 2**20))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "-" * 90,
        "[2026-01-02 10:10:29.732809] saving checkpoint at iteration       6 to /tmp/ckpt in torch_dist format",
        "    evaluate .......................................: (2815.93, 2827.67)",
        "WARNING: iteration 3 | is not a line of training",
        " validation loss at iteration 6 | ",
    ],
)
def test_other_lines_report_nothing(line):
    assert parse_line(line) is None


def iteration_line(number, loss):
    return ITERATION.replace("iteration        4/", f"iteration {number:8d}/").replace(
        "lm loss: 9.709315E+00", f"lm loss: {loss:.6E}"
    )


def test_a_history_takes_the_later_line_of_a_repeated_iteration():
    lines = [iteration_line(1, 10.0), iteration_line(2, 9.0), iteration_line(3, 8.0), VALIDATION]
    resumed = [iteration_line(3, 8.5), iteration_line(4, 7.5), VALIDATION.replace("9.742449", "8.4"), MEMORY]
    history = History.of([*lines, *resumed])
    assert history.series("lm loss") == ([1, 2, 3, 4], [10.0, 9.0, 8.5, 7.5])
    assert history.validation_series() == ([3], [8.4])
    assert history.peak_bytes == int(2491.99 * 2**20)


def test_the_final_evaluation_counts_only_where_there_was_none_in_training():
    during = VALIDATION.replace("iteration 3", "iteration 6")
    assert History.of([during, FINAL, TEST]).validation_series() == ([6], [9.742449])
    history = History.of([FINAL, TEST])
    assert history.validation_series() == ([6], [9.476127])
    assert history.test == Validation(6, "test", 9.375219)


def test_a_quantity_that_was_never_logged_is_empty():
    assert History.of([ITERATION]).series("num zeros") == ([], [])


def test_a_line_that_was_cut_off_gives_no_digits_that_may_be_missing():
    for end in range(ITERATION.index("lm loss"), len(ITERATION)):
        record = parse_line(ITERATION[:end])
        assert isinstance(record, Iteration)
        whole = parse_line(ITERATION).quantities
        assert {name: whole[name] for name in record.quantities} == record.quantities
        assert record.is_complete == (end >= len(ITERATION.rstrip()))


def test_a_line_behind_and_before_the_text_of_other_ranks():
    other = "Number of parameters in transformer block in billions:  0.00"
    assert parse_line(other + ITERATION) == parse_line(ITERATION)
    assert parse_line(other + ITERATION + "WARNING: | other: 1.0 text").quantities == parse_line(ITERATION).quantities


@pytest.mark.parametrize(
    ("stamp", "keeps_first"),
    [("[2026-01-02 10:10:11.279882] ", True), ("[2025-06-02 10:10:11] ", False), ("", False)],
)
def test_the_time_tells_releases_that_keep_the_first_iteration(stamp, keeps_first):
    line = ITERATION.replace("[2026-01-02 10:10:11.279882] ", stamp)
    assert parse_line(line).keeps_first is keeps_first
    assert parse_line(line).loss == 9.709315


def test_processes_of_real_logs():
    history = History.of((LOGS / "resumed.log").open())
    assert [process.loaded for process in history.processes] == [0, 8]
    assert [process.lines[0].iteration for process in history.processes] == [1, 9]
    assert history.repeated == {9, 10, 11}
    assert history.arguments["train_iters"] == "16" and history.arguments["seq_length"] == "128"


def test_a_process_that_ended_before_it_trained_is_none():
    lines = [*header(8), *header(), iteration_line(1, 9.0)]
    (process,) = History.of(lines).processes
    assert process.loaded is None


def test_going_back_is_a_start_and_going_on_is_none():
    lines = [iteration_line(i, 9.0) for i in (5, 6, 8, 9)] + [iteration_line(i, 8.0) for i in (7, 8)]
    first, second = History.of(lines).processes
    assert [line.iteration for line in first.lines] == [5, 6, 8, 9]
    assert [line.iteration for line in second.lines] == [7, 8]


def test_a_line_that_is_there_twice_is_no_restart():
    lines = [iteration_line(i, 9.0 - i) for i in (1, 2, 3)]
    history = History.of([line for line in lines for _ in range(2)])
    assert len(history.processes) == 1 and not history.repeated
    history = History.of([*lines, *lines])
    assert len(history.processes) == 1 and not history.repeated
