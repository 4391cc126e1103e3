"""A job that torchrun starts again (``--max-restarts``): its process groups do not meet those of the start before.

Ranks find each other by what they put into a store. torchrun's agent keeps one store for all starts where the address
is fixed (``--master-addr``), and PyTorch 2.9 distinguishes the starts in it no more: what the dead ranks left is found
by those that look for the new ones, which then hang, or end with "connection refused".
"""

import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING

from ascend_patch.engine.patch import Patch

if TYPE_CHECKING:
    from torch.distributed import Store


def initialize_distributed(original: Callable) -> Callable:
    """``_initialize_distributed`` with a store for each start."""

    @wraps(original)
    def initialize(get_embedding_ranks, get_position_embedding_ranks, store, *args, **kwargs):
        if store is None:
            store = store_of_this_start()
        return original(get_embedding_ranks, get_position_embedding_ranks, store, *args, **kwargs)

    return initialize


def store_of_this_start(environ: Mapping[str, str] = os.environ) -> "Store | None":
    """A part of the agent's store that no start before used; None in the first start, or without an agent's store.

    Starts are counted in the store itself, rank by rank: where torchrun makes a new one for each, there is nothing to
    keep apart, and its own count, ``TORCHELASTIC_RESTART_COUNT``, may differ between nodes.
    """
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import PrefixStore, TCPStore

    store = TCPStore(environ["MASTER_ADDR"], int(environ["MASTER_PORT"]), int(environ["WORLD_SIZE"]), is_master=False)
    starts = store.add(f"ascend_patch: starts of rank {environ['RANK']}", 1)
    return PrefixStore(f"ascend_patch: start {starts}", store) if starts > 1 else None


PATCHES = (
    Patch(
        id="restarts.store",
        target="megatron.training.initialize:_initialize_distributed",
        impl="ascend_patch.features.restarts:initialize_distributed",
        mode="wrap",
        upstream=">=0.17,<0.20",
        reason="Ranks that `torchrun --master-addr … --max-restarts …` has started again find what dead ones left.",
        remove_when="PyTorch keeps the starts of a static rendezvous apart (its issue 135712, for the other kinds).",
    ),
)
