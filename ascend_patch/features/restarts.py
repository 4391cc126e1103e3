"""A job that torchrun starts again (``--max-restarts``): its process groups do not meet those of the start before.

Ranks find each other by what they put into a store. torchrun's agent keeps one store for all starts, and PyTorch 2.9
distinguishes the starts in it no more: ranks that look for each other find what dead ones left there, and hang or end
with "connection refused".
"""

import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.engine.patch import Patch

if TYPE_CHECKING:
    from torch.distributed import Store

_POLL_SECONDS = 0.2


def initialize_distributed(original: Callable) -> Callable:
    """``_initialize_distributed`` with a store for each start."""

    @wraps(original)
    def initialize(get_embedding_ranks, get_position_embedding_ranks, store, *args, **kwargs):
        from megatron.training import get_args

        if store is None:
            store = store_of_this_start(timedelta(minutes=get_args().distributed_timeout_minutes))
        return original(get_embedding_ranks, get_position_embedding_ranks, store, *args, **kwargs)

    return initialize


def store_of_this_start(timeout: timedelta, environ: Mapping[str, str] = os.environ) -> "Store | None":
    """A part of the agent's store that no start before used; None in the first start, or without an agent's store.

    All ranks agree on the number of the start. torchrun's own, ``TORCHELASTIC_RESTART_COUNT``, may differ between
    nodes, of which one may have started twice before the others noticed; the highest counts then, and is more than
    that of any start that got so far.

    Raises:
        AscendPatchError: not all ranks came within ``timeout``.
    """
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import DistStoreError, PrefixStore, TCPStore

    address, port, world_size = environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), int(environ["WORLD_SIZE"])
    store = TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    keys = [f"ascend_patch: start of rank {rank}" for rank in range(world_size)]
    own = keys[int(environ["RANK"])]
    before = int(store.get(own)) if store.check([own]) else -1
    start = max(before + 1, int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        store.set(own, str(start))
        try:
            found = [int(value) for value in store.multi_get(keys)]  # type: ignore[attr-defined]  # waits for all
        except DistStoreError as error:
            raise _absent(timeout, [rank for rank, key in enumerate(keys) if not store.check([key])]) from error
        if set(found) == {start}:
            return PrefixStore(f"ascend_patch: start {start}", store) if start else None
        start = max(found)
        if time.monotonic() > deadline:
            raise _absent(timeout, [rank for rank, other in enumerate(found) if other < start])
        time.sleep(_POLL_SECONDS)


def _absent(timeout: timedelta, ranks: list[int]) -> AscendPatchError:
    shown = ", ".join(map(str, ranks[:8])) + (" …" if len(ranks) > 8 else "")
    return AscendPatchError(
        f"The other ranks waited {timeout.total_seconds():.0f} s for {shown} to start. Look at the output of their "
        "nodes; --distributed-timeout-minutes is how long ranks wait for each other."
    )


PATCHES = (
    Patch(
        id="restarts.store",
        target="megatron.training.initialize:_initialize_distributed",
        impl="ascend_patch.features.restarts:initialize_distributed",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason="Ranks that `torchrun --max-restarts` has started again find what dead ones left in the agent's store.",
        remove_when="PyTorch keeps the starts of an agent apart in its store (its issue 135712).",
    ),
)
