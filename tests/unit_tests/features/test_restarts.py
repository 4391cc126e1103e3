"""Each start of a job under one agent has a store of its own, and all ranks the same."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch.distributed import Store, TCPStore

from ascend_patch.engine.errors import AscendPatchError
from ascend_patch.features.restarts import initialize_distributed, store_of_this_start

SOON = timedelta(seconds=20)


@pytest.fixture
def agent() -> TCPStore:
    """The store of torchrun's agent."""
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=SOON)


def start(agent: TCPStore, restarts: list[int | None], timeout: timedelta = SOON) -> list[Store | None]:
    """A start of as many ranks, whose agents have restarted so often; None: the rank dies before it comes so far."""
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(agent.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    common["WORLD_SIZE"] = str(len(restarts))
    with ThreadPoolExecutor() as pool:
        ranks = [
            pool.submit(
                store_of_this_start, timeout, common | {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(count)}
            )
            for rank, count in enumerate(restarts)
            if count is not None
        ]
        return [rank.result() for rank in ranks]


def check_alone(stores: list[Store | None], text: str) -> None:
    """The ranks find each other there, and nothing of another start."""
    assert not any(store.check(["0"]) for store in stores)
    stores[0].set("0", text)
    assert [store.get("0") for store in stores] == [text.encode()] * len(stores)


def test_starts_do_not_see_one_another(agent: TCPStore) -> None:
    assert start(agent, [0, 0]) == [None, None]
    agent.set("0", "left by the first start")
    check_alone(start(agent, [1, 1]), "second")
    check_alone(start(agent, [2, 2]), "third")


def test_nodes_that_did_not_restart_equally_often(agent: TCPStore) -> None:
    assert start(agent, [0, 0]) == [None, None]
    check_alone(start(agent, [3, 1]), "second")
    check_alone(start(agent, [4, 2]), "third")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_misses_a_start(agent: TCPStore, lost: int) -> None:
    start(agent, [0, 0])
    alone = [1, 1]
    alone[lost] = None
    with pytest.raises(AscendPatchError, match=rf"waited 1 s for {lost} to start"):
        start(agent, alone, timedelta(seconds=1))
    check_alone(start(agent, [2, 2]), "third")


def test_a_rank_that_dies_in_the_first_start(agent: TCPStore) -> None:
    with pytest.raises(AscendPatchError, match="waited 1 s for 1 to start"):
        start(agent, [0, None], timedelta(seconds=1))
    check_alone(start(agent, [1, 1]), "second")


def test_without_an_agents_store() -> None:
    assert store_of_this_start(SOON, {"RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}) is None


def test_a_store_that_was_given_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import megatron.training

    monkeypatch.setattr(megatron.training, "get_args", lambda: SimpleNamespace(distributed_timeout_minutes=1))

    def original(*args: object, **kwargs: object) -> tuple:
        return args, kwargs

    assert initialize_distributed(original)(1, 2, "store", skip=True) == ((1, 2, "store"), {"skip": True})
