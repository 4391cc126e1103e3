"""Streams and events of the cpu device."""

import threading
import time

import pytest
import torch

from ascend_patch.engine.errors import AscendPatchError

pytestmark = pytest.mark.usefixtures("cpu_device")


def test_current_stream_follows_the_context():
    default = torch.cuda.default_stream()
    outer, inner = torch.cuda.Stream(), torch.cuda.Stream(priority=-1)
    assert torch.cuda.current_stream() is default
    with torch.cuda.stream(outer):
        assert torch.cuda.current_stream() is outer
        with inner:
            assert torch.cuda.current_stream(torch.device("cuda")) is inner
        with torch.cuda.stream(None):
            assert torch.cuda.current_stream() is outer
        assert torch.cuda.current_stream() is outer
    assert torch.cuda.current_stream() is default
    torch.cuda.set_stream(outer)
    assert torch.cuda.current_stream() is outer
    torch.cuda.set_stream(None)
    assert torch.cuda.current_stream() is outer


def test_the_context_is_left_on_an_error():
    with pytest.raises(ValueError), torch.cuda.stream(torch.cuda.Stream()):
        raise ValueError
    assert torch.cuda.current_stream() is torch.cuda.default_stream()


def test_every_thread_has_a_current_stream():
    seen = []
    with torch.cuda.stream(torch.cuda.Stream()):
        thread = threading.Thread(target=lambda: seen.append(torch.cuda.current_stream()))
        thread.start()
        thread.join()
    assert seen == [torch.cuda.default_stream()]


def test_waiting_returns():
    stream, event = torch.cuda.Stream(), torch.cuda.Event()
    stream.wait_stream(torch.cuda.current_stream())
    assert stream.record_event(event) is event
    assert isinstance(stream.record_event(), torch.cuda.Event)
    stream.wait_event(event)
    stream.synchronize()
    event.wait(stream)
    event.wait()
    event.synchronize()
    assert stream.query() and event.query()
    assert stream.device.type == "cuda" and stream.cuda_stream == 0
    assert torch.cuda.Stream.priority_range() == (0, 0)
    assert isinstance(stream, torch.cuda.Stream)


def test_elapsed_time_is_in_milliseconds():
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    time.sleep(0.05)
    end.record(torch.cuda.current_stream())
    assert 50 <= start.elapsed_time(end) < 5000


def test_elapsed_time_needs_timing_and_records():
    timed, untimed = torch.cuda.Event(enable_timing=True), torch.cuda.Event()
    with pytest.raises(RuntimeError, match="recorded"):
        timed.elapsed_time(torch.cuda.Event(enable_timing=True))
    timed.record()
    untimed.record()
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        timed.elapsed_time(untimed)


def test_interprocess_event_is_refused():
    with pytest.raises(AscendPatchError, match="between processes"):
        torch.cuda.Event(interprocess=True)
