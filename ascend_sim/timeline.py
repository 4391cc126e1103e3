"""In which order a process gave its device computation, collectives and waits; what of it may run at the same time.

This is about order, not time. The device runs what is given to a stream in that order. A collective runs beside the
streams: after what its stream was given before it and after the earlier collectives of its communicator. What must
wait for it follows from waits for its handle, from events that streams record and wait for, and from waits of the
host, which hold up whatever is launched later. Waits for the future of a handle are not seen.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch


class Event(NamedTuple):
    """One entry of the record, as ``csrc/counters.cpp`` writes it.

    Attributes:
        kind: ``"launch"``; ``"collective"``; ``"wait"``, of a stream for a collective; ``"record event"`` and ``"wait
            event"``, by a stream; ``"synchronize stream"``, ``"synchronize event"``, ``"synchronize device"``, by the
            host; ``"operator"``, the start of one whose collectives, up to its launch, are part of it.
        stream, event: identities, 0 for none.
        communicator, sequence: of a collective, or of the one that is waited for.
        scope: part of the model, of a launch or a collective.
        name: of the operator or the collective.
        group: the collective's process group.
        bytes: read and written by a launch; contributed to a collective by this rank.
    """

    kind: str
    stream: int = 0
    event: int = 0
    communicator: str = ""
    sequence: int = 0
    scope: str = ""
    name: str = ""
    group: str = ""
    bytes: int = 0


@dataclass
class Span:
    """A collective and what may run beside it.

    Attributes:
        start: its position in the record.
        beside: the positions of the later launches that need not wait for it. It can hide if there is one.
    """

    event: Event
    start: int
    beside: list[int] = field(default_factory=list)


@contextlib.contextmanager
def record() -> Iterator[list[Event]]:
    """Record what this process gives to its device inside; the list is filled at the end of the block."""
    events: list[Event] = []
    torch.ops.ascend_sim.record_order(True)
    try:
        yield events
    finally:
        events += map(_event, torch.ops.ascend_sim.record_order(False))


def spans(events: Sequence[Event]) -> list[Span]:
    """What may run beside each collective, in the order of their launches.

    A launch may if it comes later in the record and neither its stream nor the host has waited for the collective, in
    one of the ways of :class:`Event`, before it. Launches on other streams that come earlier may as well, on a device;
    they are left out, since they may have ended. A launch may be beside several collectives. For a collective that is
    part of an operator, the operator's own launch is beside it.
    """
    found: list[Span] = []
    # Sets of collectives that have ended by then, a bit for each.
    by_stream: dict[int, int] = defaultdict(int)
    by_event: dict[int, int] = {}
    by_communicator: dict[str, int] = defaultdict(int)
    by_handle: dict[tuple[str, int], int] = defaultdict(int)
    by_host = 0
    inside = range(0)  # the collectives that are part of the next launch
    for position, event in enumerate(events):
        handle = (event.communicator, event.sequence)
        match event.kind:
            case "launch":
                ended = by_stream[event.stream] | by_host
                for number, span in enumerate(found):
                    if not ended >> number & 1 or number in inside:
                        span.beside.append(position)
                inside = range(0)
            case "collective":
                by_communicator[event.communicator] |= by_stream[event.stream] | by_host | 1 << len(found)
                by_handle[handle] |= by_communicator[event.communicator]
                found.append(Span(event, position))
            case "operator":
                inside = range(len(found), len(events))
            case "wait":
                by_stream[event.stream] |= by_handle[handle]
            case "record event":
                by_event[event.event] = by_stream[event.stream]
            case "wait event":
                by_stream[event.stream] |= by_event.get(event.event, 0)
            case "synchronize stream":
                by_host |= by_stream[event.stream]
            case "synchronize event":
                by_host |= by_event.get(event.event, 0)
            case "synchronize device":
                by_host = (1 << len(found)) - 1
            case kind:
                raise ValueError(f"the record has an event of kind {kind!r}, which Event does not name")
    return found


def _event(line: str) -> Event:
    kind, stream, event, communicator, sequence, scope, name, group, moved = line.split("\t")
    return Event(kind, int(stream), int(event), communicator, int(sequence), scope, name, group, int(moved))
