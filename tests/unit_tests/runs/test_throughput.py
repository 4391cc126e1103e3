"""The figures of a throughput table."""

import pytest

from ascend_patch.runs.read import read
from ascend_patch.runs.throughput import Throughput, throughput
from tests.unit_tests.runs.logs import Upstream, header, write


def test_the_seeds_table(tmp_path):
    """Mixtral 8x7B on 16 devices, global batch 128, sequences of 4096 tokens."""
    for seconds, samples, tokens in ((31.13, 4.11, 1053.6), (28.76, 4.45, 1139.3)):
        upstream = Upstream(batch=128)
        lines = header(log_interval=1, seq_length=4096, world_size=16)
        lines += upstream.process(dict.fromkeys(range(1, 12), 5.0), seconds=seconds)
        found = throughput(read(write(tmp_path, "run", lines)))
        assert found.iterations == 9
        assert found.seconds == pytest.approx(seconds)
        assert found.samples == pytest.approx(samples, rel=2e-3)
        assert found.tokens == pytest.approx(tokens, rel=2e-3)


def test_what_the_log_does_not_tell(tmp_path):
    run = read(write(tmp_path, "run", Upstream(batch=4).process(dict.fromkeys(range(1, 8), 5.0), seconds=0.5)))
    assert throughput(run) == Throughput(5, 0.5, 8.0, None)
    assert throughput(run, devices=2, seq_length=100).tokens == 400
    assert throughput(read(write(tmp_path, "short", Upstream().process({1: 5.0, 2: 4.0})))) == Throughput(0)


def test_the_median_is_not_moved_by_a_slow_iteration(tmp_path):
    upstream = Upstream()
    lines = upstream.process(dict.fromkeys(range(1, 8), 5.0), seconds=0.5)
    lines[4] = lines[4].replace("500.0", "90000.0")
    assert throughput(read(write(tmp_path, "run", lines))).seconds == 0.5
