"""Each start of a job under one agent has a store of its own."""

from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from ascend_patch.features.restarts import initialize_distributed, store_of_this_start


@pytest.fixture
def agent() -> TCPStore:
    """The store of torchrun's agent."""
    return TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


def environment(agent: TCPStore, rank: int, world_size: int = 2) -> dict[str, str]:
    """What the agent tells a rank."""
    own = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(agent.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return own | {"RANK": str(rank), "WORLD_SIZE": str(world_size)}


def test_starts_do_not_see_one_another(agent: TCPStore) -> None:
    assert [store_of_this_start(environment(agent, rank)) for rank in (0, 1)] == [None, None]
    agent.set("0", "left by the first start")
    second = [store_of_this_start(environment(agent, rank)) for rank in (0, 1)]
    assert not second[1].check(["0"])
    second[0].set("0", "of the second")
    assert second[1].get("0") == b"of the second"
    third = store_of_this_start(environment(agent, 1))
    assert not third.check(["0"])


def test_without_an_agents_store() -> None:
    assert store_of_this_start({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "False"}) is None


def test_a_store_that_was_given_is_taken() -> None:
    def original(*args: object, **kwargs: object) -> tuple:
        return args, kwargs

    assert initialize_distributed(original)(1, 2, "store", skip=True) == ((1, 2, "store"), {"skip": True})
