"""For ``test_absent.py``: ``python -m tests.unit_tests.absent_worker FOLDER CASE…``, each case in four ranks on gloo.

What a rank says at its end is in ``FOLDER/CASE<RANK>.txt``; the first line is how many seconds it had waited.
"""

import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from ascend_patch import absent, failure

RANKS = 4
LOST = 1
"""The rank that does not come."""
TOGETHER = timedelta(seconds=120)
"""How long ranks may take to begin."""
WAIT = timedelta(seconds=1)
"""The collectives' timeout."""
LISTS = {"ROW": ([0, 1], [2, 3]), "COLUMN": ([0, 2], [1, 3])}


def away() -> None:
    time.sleep(TOGETHER.total_seconds())


def failed() -> None:
    raise ValueError("boom.\nMore of it")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


#: What becomes of the rank, and whether the store is in it.
CASES = {
    "away": (away, False),
    "handle": (away, False),
    "failed": (failed, False),
    "killed": (killed, False),
    "store_killed": (killed, True),
    "store_stopped": (stopped, True),
}


def run(case: str, rank: int, port: int, folder: Path) -> None:
    """Rank 0 waits for rank 1; so does rank 3, for which rank 2 waits."""
    torch.set_num_threads(1)
    os.environ["RANK"] = str(rank)
    failure.install()
    lose, hosts_store = CASES[case]
    agent = store = dist.TCPStore("localhost", port, is_master=False, timeout=TOGETHER)
    if hosts_store:
        if rank == LOST:
            own = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=TOGETHER)
            agent.set("port", str(own.port))
        store = dist.TCPStore("localhost", int(agent.get("port")), is_master=False, timeout=TOGETHER)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=TOGETHER)
    groups = {}
    for name, lists in LISTS.items():
        for ranks in lists:
            group = dist.new_group(ranks, group_desc=name)
            if rank in ranks:
                dist.distributed_c10d._set_pg_timeout(WAIT, group)
                groups[name] = group
    absent.leave_host()
    agent.set(f"process of rank {rank}", str(os.getpid()))
    agent.wait([f"process of rank {other}" for other in range(RANKS)])
    if lose in (killed, stopped) and rank != LOST:
        with suppress(psutil.NoSuchProcess):
            lost = psutil.Process(int(agent.get(f"process of rank {LOST}")))
            while lost.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED):
                time.sleep(0.01)
    began = time.monotonic()
    with open(folder / f"{case}{rank}.txt", "w") as sys.stderr:
        try:
            if rank == LOST:
                lose()
            handle = dist.all_reduce(
                torch.ones(4), group=groups["COLUMN" if rank == 3 else "ROW"], async_op=case == "handle"
            )
            if handle:
                handle.wait()
        except Exception:
            sys.excepthook(*sys.exc_info())
            print(f"{time.monotonic() - began:.1f}", file=sys.stderr)
    os._exit(0)


def serve(connection: Connection) -> None:
    """A store, as torchrun's agent has it."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    connection.send(store.port)
    time.sleep(TOGETHER.total_seconds())


def main() -> None:
    """All cases at once: they wait more than they work."""
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    fork = multiprocessing.get_context("fork")  # and no threads here, which a store has
    receiver, sender = fork.Pipe(duplex=False)
    waiting, others = [], []
    for case in cases:
        others.append(fork.Process(target=serve, args=(sender,)))
        others[-1].start()
        port = receiver.recv()
        for rank in range(RANKS):
            process = fork.Process(target=run, args=(case, rank, port, folder))
            process.start()
            (others if rank == LOST else waiting).append(process)
    for process in waiting:
        process.join()
    for process in others:
        process.kill()


if __name__ == "__main__":
    main()
