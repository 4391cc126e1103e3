"""An OpenAI-compatible server over the engine: completions and chat, streamed or whole.

HTTP is uvicorn's, in a thread of rank 0; the engine stays in the main thread, of every rank. In between are commands:
rank 0 collects them, tells the other ranks, and all of them carry them out, then make a step. A request is data:
nothing in it names code, a file or another model.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ascend_patch.generation import ranks
from ascend_patch.generation.base_engine import BaseEngine, Finish, Request
from ascend_patch.generation.chat import new_text
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import Choice, SamplingOptions

_HEARTBEAT_SECONDS = 5.0
"""The other ranks wait in a collective; they hear from rank 0 this often, long before that gives up."""


@dataclass(frozen=True)
class Piece:
    """What a step added to a completion."""

    text: str
    tokens: int
    choices: tuple[Choice, ...] = ()
    finish: Finish | None = None


@dataclass
class Job:
    """Where the pieces go of what a client has asked for."""

    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue = field(default_factory=asyncio.Queue)
    """:class:`Piece` objects, or the :class:`GenerationError` that ends them."""


class Overloaded(GenerationError):
    """More requests wait than are allowed to."""


class Stopping(GenerationError):
    """The server takes no more requests."""


class Service:
    """The engine, driven by commands from any thread.

    Args:
        most_requests: clients' requests that are worked on or wait.
    """

    def __init__(self, engine: BaseEngine, most_requests: int) -> None:
        self.engine = engine
        self.most_requests = most_requests
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._shown: dict[int, tuple[int, int]] = {}
        """Characters and tokens that have been delivered."""
        self._requests: dict[int, Request] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._stopping = False

    # For the threads of clients, on rank 0.

    async def generate(
        self, prompt: Sequence[int], options: SamplingOptions, begins_anew: bool = False
    ) -> AsyncGenerator[Piece]:
        """The pieces of a completion, as :meth:`BaseEngine.submit` makes it. Who stops to iterate wants no more.

        Raises:
            GenerationError: the engine refuses the prompt.
            Overloaded, Stopping: not now.
        """
        job = Job(asyncio.get_running_loop())
        with self._lock:
            if self._stopping:
                raise Stopping("The server is shutting down.")
            if len(self._jobs) >= self.most_requests:
                raise Overloaded(f"{self.most_requests} requests are under way already; try again later.")
            number, self._next = self._next, self._next + 1
            self._jobs[number] = job
        self._commands.put(("submit", number, list(prompt), options, begins_anew))
        try:
            while True:
                piece = await job.pieces.get()
                if isinstance(piece, GenerationError):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            with self._lock:
                del self._jobs[number]
            self._commands.put(("cancel", number))

    def stop(self) -> None:
        """Take no more requests; :meth:`run` returns when those that are there have been completed."""
        with self._lock:
            self._stopping = True
        self._commands.put(("stop",))

    # For the main thread, on every rank.

    def run(self) -> None:
        """Serve until :meth:`stop`. Every rank calls it."""
        stopping = False
        try:
            while not stopping or self.engine.busy:
                for command in ranks.broadcast(self._collect() if ranks.first() else None):
                    if command[0] == "stop":
                        stopping = True
                    else:
                        self._carry_out(*command)
                if self.engine.busy:
                    for request in self.engine.step():
                        self._deliver(request)
        except BaseException:
            self._fail_all()
            raise

    def _collect(self) -> list[tuple]:
        """The commands that have come; waits for one where there is nothing else to do."""
        commands = []
        try:
            if not self.engine.busy:
                commands.append(self._commands.get(timeout=_HEARTBEAT_SECONDS))
            while True:
                commands.append(self._commands.get_nowait())
        except queue.Empty:
            return commands

    def _carry_out(self, what: str, number: int, *given: Any) -> None:
        if what == "cancel":
            request = self._requests.pop(number, None)  # None where it has ended
            if request is not None:
                self.engine.cancel(request)
                del self._shown[request.id]
            return
        try:
            request = self.engine.submit(*given)
        except GenerationError as error:
            self._send(number, error)
            return
        self._requests[number] = request
        self._shown[request.id] = (0, 0)

    def _deliver(self, request: Request) -> None:
        number = next(number for number, known in self._requests.items() if known is request)
        characters, tokens = self._shown[request.id]
        text = new_text(request, characters)
        if text or request.finish is not None:
            self._shown[request.id] = (characters + len(text), len(request.tokens))
            choices = tuple(request.choices[tokens:])
            self._send(number, Piece(text, len(request.tokens) - tokens, choices, request.finish))
        if request.finish is not None:
            del self._requests[number], self._shown[request.id]

    def _send(self, number: int, what: Piece | GenerationError) -> None:
        with self._lock:
            job = self._jobs.get(number)  # None on the other ranks, and where the client has gone
        if job is not None and not job.loop.is_closed():
            job.loop.call_soon_threadsafe(job.pieces.put_nowait, what)

    def _fail_all(self) -> None:
        """The engine has failed: nobody is left waiting."""
        with self._lock:
            self._stopping = True
            numbers = list(self._jobs)
        for number in numbers:
            self._send(number, Stopping("The server has failed, and says why in its log."))
