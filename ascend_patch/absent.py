"""Which rank did not come: ranks that fail because they lost another one tell each other so, through the job's store.

Before a failure nothing is sent but the name of each rank's host, once. Each rank that waited in vain says for whom;
`GRACE` seconds after the first of them, that one names the ranks that were waited for and have said nothing. All print
its answer. A rank that fails for a reason of its own gives the answer at once.

The store is in torchrun's agent on the first node, or in rank 0. Where it has gone, or does not answer, nobody knows
more than before, a little later.
"""

import json
import socket
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

GRACE = 5.0
"""Seconds from the first rank that gives up to its answer: ranks do not begin to wait at the same time."""
_REPLY = 2.0
"""Seconds that the store may take for what it can answer at once."""
_SHOWN = 16
"""Ranks that are named. More are a whole node, or the network."""

UNKNOWN = (
    "Either that rank has ended, and the output of the rank that failed first has the cause, or it never came to this "
    "call, or the network between the nodes is down."
)
_NOBODY = (
    "No rank is missing: all that were waited for waited themselves. Either they are in different calls, and their "
    "tracebacks say in which, or the network between the nodes is down."
)


@dataclass(frozen=True)
class Waited:
    """Where a rank waited: the function of torch.distributed, the description of the group, and all of its ranks."""

    collective: str
    group: str
    ranks: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.collective} of group {self.group}, ranks {' '.join(map(str, self.ranks))}"


def explain(waited: Waited | None, timed_out: bool) -> str:
    """Say to the job that this rank waited in vain. Returns why, as far as the job knows, after at most 7 seconds.

    Args:
        waited: None where it is not known in which group.
        timed_out: False where a connection was lost, which says nothing about ranks that still wait.
    """
    job = Job.of_this_process()
    return (job and _within(GRACE + _REPLY, lambda: job.ask(waited, timed_out))) or UNKNOWN


def leave_host() -> None:
    """Say to the job on which host this rank is."""
    job = Job.of_this_process()
    if job:
        job.leave_host()


def leave_end(error: BaseException) -> None:
    """Say to the job that this rank fails with ``error``, unless that may be for want of another rank."""
    job = Job.of_this_process()
    if job and not isinstance(error, sys.modules["torch.distributed"].DistError):
        _within(_REPLY, lambda: job.leave_end(error))


def _within(seconds: float, task: Callable[[], str]) -> str | None:
    """What ``task`` returns; None if the store has gone, or does not answer in time, whatever its own timeouts."""
    done: list[str] = []

    def run() -> None:
        with suppress(RuntimeError):  # what torch.distributed's errors are
            done.append(task())

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return done[0] if done else None


@dataclass(frozen=True)
class Job:
    """This rank among ``size``, and the store that all of them have."""

    rank: int
    size: int
    store: "Store"

    @classmethod
    def of_this_process(cls) -> "Job | None":
        """None without a default group, and where this rank is alone."""
        distributed = sys.modules.get("torch.distributed")
        if not (distributed and distributed.is_available() and distributed.is_initialized()):
            return None
        if distributed.get_world_size() == 1:
            return None
        store = distributed.PrefixStore("ascend_patch", distributed.distributed_c10d._get_default_store())
        return cls(distributed.get_rank(), distributed.get_world_size(), store)

    def leave_host(self) -> None:
        """Say on which host this rank is."""
        self.store.set(f"host of rank {self.rank}", socket.gethostname())

    def leave_end(self, error: BaseException) -> str:
        """Answer that it was ``error`` of this rank."""
        text = str(error).partition("\n")[0][:300].rstrip(".")
        cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
        return self._answer(f"{self._named([self.rank])} has ended with {cause}. Its output says more.")

    def ask(self, waited: Waited | None, timed_out: bool) -> str:
        """Report that this rank waited, and get the answer; raises RuntimeError where there is none in time."""
        number = self.store.add("reports", 1)
        report = {"rank": self.rank, "for": waited and " ".join(map(str, waited.ranks)), "timed_out": timed_out}
        self.store.set(f"report {number}", json.dumps(report))
        try:
            self.store.wait(["answer"], timedelta(seconds=GRACE + (number > 1) * _REPLY))
        except RuntimeError:
            if number > 1:
                raise
            return self._answer(self._missing())
        return self.store.get("answer").decode()

    def _answer(self, text: str) -> str:
        """This one, or that which was there before."""
        return self.store.compare_set("answer", "", text).decode()

    def _missing(self) -> str:
        numbers = range(1, self.store.add("reports", 0) + 1)
        reports = [json.loads(self.store.get(f"report {number}")) for number in numbers]
        if not any(report["timed_out"] for report in reports):
            return UNKNOWN
        waiting = {report["rank"] for report in reports}
        groups = {report["for"] for report in reports}  # of thousands of ranks many are in the same
        missing = {int(rank) for group in groups - {None} for rank in group.split()} - waiting
        if not missing and None in groups:
            missing = set(range(self.size)) - waiting
        if not missing:
            return _NOBODY
        return (
            f"{self._named(sorted(missing))} did not come. See whether the host can be reached, and what the process "
            "does there (py-spy dump)."
        )

    def _named(self, ranks: list[int]) -> str:
        """ "Ranks 1 2 on node7, 8 on node8"."""
        on_host: dict[str, list[str]] = defaultdict(list)
        for rank in ranks[:_SHOWN]:
            key = f"host of rank {rank}"
            host = f" on {self.store.get(key).decode()}" if self.store.check([key]) else ""
            on_host[host].append(str(rank))
        more = f" and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else ""
        listed = ", ".join(" ".join(some) + host for host, some in on_host.items())
        return f"Rank{'s' if len(ranks) > 1 else ''} {listed}{more}"
