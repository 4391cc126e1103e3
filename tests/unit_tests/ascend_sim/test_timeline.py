"""What may run beside a collective, from records written by hand."""

import pytest

from ascend_sim.timeline import Event, Span, spans

MAIN, SIDE = 1, 2


def launch(stream=MAIN):
    return Event("launch", stream, name="mul")


def collective(sequence=1, stream=MAIN, communicator="ep"):
    return Event("collective", stream, communicator=communicator, sequence=sequence, name="all_reduce")


def wait(sequence=1, stream=MAIN, communicator="ep"):
    return Event("wait", stream, communicator=communicator, sequence=sequence)


def found(*events):
    """Start and what is beside it, for each collective."""
    return [(span.start, span.beside) for span in spans(events)]


def test_a_blocking_call_hides_nothing():
    assert found(launch(), collective(), wait(), launch()) == [(1, [])]


def test_what_is_launched_before_the_wait_runs_beside_it():
    assert found(launch(), collective(), launch(), launch(), wait(), launch()) == [(1, [2, 3])]


def test_a_wait_holds_up_nothing_before_the_next_launch():
    assert found(collective(), launch(), wait()) == [(0, [1])]


def test_never_waited_for():
    assert found(launch(), collective(), launch()) == [(1, [2])]
    assert found(launch(), collective()) == [(1, [])]


def test_no_collective_and_no_events():
    assert found(launch(), wait()) == found() == []


def test_a_blocking_call_on_a_stream_of_its_own():
    """The other stream goes on until it waits for an event that was recorded after the wait."""
    events = [
        collective(stream=SIDE),
        wait(stream=SIDE),
        launch(SIDE),
        launch(MAIN),
        Event("record event", SIDE, 7),
        launch(MAIN),
        Event("wait event", MAIN, 7),
        launch(MAIN),
    ]
    assert found(*events) == [(0, [3, 5])]


def test_an_event_recorded_before_the_wait_orders_nothing():
    events = [Event("record event", SIDE, 7), collective(stream=SIDE), wait(stream=SIDE)]
    events += [Event("wait event", MAIN, 7), Event("wait event", MAIN, 8), launch(MAIN)]
    assert found(*events) == [(1, [5])]


def test_an_event_recorded_again_stands_for_its_last_record():
    again = [collective(stream=SIDE), wait(stream=SIDE), Event("record event", SIDE, 7)]
    again += [Event("record event", MAIN, 7), Event("wait event", MAIN, 7), launch(MAIN)]
    assert found(*again) == [(0, [5])]


@pytest.mark.parametrize(
    ("synchronized", "beside"),
    [
        (Event("synchronize stream", SIDE), []),
        (Event("synchronize stream", MAIN), [4]),
        (Event("synchronize event", 0, 7), []),
        (Event("synchronize event", 0, 8), [4]),
        (Event("synchronize device"), []),
    ],
)
def test_waits_of_the_host_hold_up_every_stream(synchronized, beside):
    events = [collective(stream=SIDE), wait(stream=SIDE), Event("record event", SIDE, 7), synchronized, launch(MAIN)]
    assert found(*events) == [(0, beside)]


def test_waiting_for_a_stream_is_not_waiting_for_a_collective_that_it_launched():
    assert found(collective(), Event("synchronize stream", MAIN), launch(), wait(), launch()) == [(0, [2])]
    assert found(collective(), Event("synchronize device"), launch()) == [(0, [])]


def test_collectives_of_a_communicator_run_one_after_the_other():
    """To wait for the second is to wait for the first; the second holds up nothing that waits for the first alone."""
    events = [collective(1), launch(), collective(2), launch(), wait(2), launch()]
    assert found(*events) == [(0, [1, 3]), (2, [3])]
    events = [collective(1), collective(2), wait(1), launch(), wait(2), launch()]
    assert found(*events) == [(0, []), (1, [3])]
    events = [collective(1, communicator="ep"), collective(1, communicator="tp"), wait(1, communicator="tp"), launch()]
    assert found(*events) == [(0, [3]), (1, [])]


def test_a_collective_begins_after_what_its_stream_has_waited_for():
    events = [collective(1, communicator="ep"), wait(1, communicator="ep"), collective(1, communicator="tp")]
    events += [launch(SIDE), wait(1, SIDE, "tp"), launch(SIDE)]
    assert found(*events) == [(0, [3]), (2, [3])]


def test_coalesced_collectives_have_one_handle():
    events = [collective(1), collective(1), launch(), wait(1), launch()]
    assert found(*events) == [(0, [2]), (1, [2])]


def test_a_collective_within_an_operator_hides_behind_it():
    events = [Event("operator"), collective(1), wait(1), launch(), collective(2), wait(2), launch()]
    assert found(*events) == [(1, [3]), (4, [])]


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="kind 'launched'"):
        spans([Event("launched")])


def test_the_span_names_its_collective():
    assert spans([collective()]) == [Span(collective(), 0, [])]
