"""``torch.cuda.Stream`` and ``Event`` for a device that finishes every operation before it returns.

Operators on the host are synchronous, so there is nothing to order: a stream is a name and waiting is done at
once. Only which stream is current is remembered, because upstream reads it back. Collectives do run in the
background, but they are waited for through their ``Work``, never through a stream.
"""

import threading
import time
from typing import Any

import torch
import torch.cuda.streams

from ascend_patch.devices.substitute import Substitutions
from ascend_patch.engine.errors import AscendPatchError


class HostEvent:
    """``torch.cuda.Event``: a point in time, taken when :meth:`record` is called."""

    def __init__(
        self,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        external: bool = False,
    ) -> None:
        if interprocess:
            raise AscendPatchError(
                "torch.cuda.Event(interprocess=True) was used, but the cpu device cannot share an event "
                "between processes. Synchronise them with torch.distributed.barrier()."
            )
        self._timed = enable_timing
        self._recorded: float | None = None  # seconds of time.perf_counter

    def record(self, stream: "HostStream | None" = None) -> None:
        """Take the time."""
        self._recorded = time.perf_counter()

    def wait(self, stream: "HostStream | None" = None) -> None:
        """Return: what was recorded has happened."""

    def query(self) -> bool:
        """True: what was recorded has happened."""
        return True

    def synchronize(self) -> None:
        """Return: what was recorded has happened."""

    def elapsed_time(self, end_event: "HostEvent") -> float:
        """Milliseconds of wall-clock time from this event to `end_event`.

        Raises:
            RuntimeError: one of the two was made without ``enable_timing=True`` or never recorded.
        """
        if not (self._timed and end_event._timed):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        if self._recorded is None or end_event._recorded is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (end_event._recorded - self._recorded) * 1e3


class HostStream:
    """``torch.cuda.Stream``: a name for an order of operations that the host keeps anyway."""

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        self.device = torch.device("cuda", torch.cuda._get_device_index(device, optional=True))
        self.priority = priority
        self.cuda_stream = 0  # the handle CUDA kernels would be launched on: the default stream

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """Least and greatest priority: there is one."""
        return 0, 0

    def wait_stream(self, stream: "HostStream") -> None:
        """Return: everything on `stream` has happened."""

    def wait_event(self, event: HostEvent) -> None:
        """Return: `event` has happened."""

    def record_event(self, event: HostEvent | None = None) -> HostEvent:
        """Record `event`, or a new one, and return it."""
        event = HostEvent() if event is None else event
        event.record(self)
        return event

    def query(self) -> bool:
        """True: everything on this stream has happened."""
        return True

    def synchronize(self) -> None:
        """Return: everything on this stream has happened."""

    def __enter__(self) -> "HostStream":
        self._context = torch.cuda.stream(self)  # type: ignore[arg-type]  # Stream is HostStream by now
        self._context.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)


class _Streams(threading.local):
    """The current stream of each thread, as CUDA keeps it."""

    def __init__(self, default: HostStream) -> None:
        self.current = default


def install(substitutions: Substitutions) -> None:
    """Substitute the classes, and which stream is current; ``with torch.cuda.stream(s)`` works on that."""
    default = HostStream()
    streams = _Streams(default)

    def current_stream(device: Any = None) -> HostStream:
        return streams.current

    def default_stream(device: Any = None) -> HostStream:
        return default

    def set_stream(stream: HostStream | None) -> None:
        if stream is not None:
            streams.current = stream

    for name, value in {"Stream": HostStream, "Event": HostEvent}.items():
        substitutions.set_in_all((torch.cuda, torch.cuda.streams, torch.cuda.graphs), name, value)
    for function in (current_stream, default_stream, set_stream):
        substitutions.set(torch.cuda, function.__name__, function)
