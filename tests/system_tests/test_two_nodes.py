"""The example script on two nodes, each in a network namespace of its own; then the cable is pulled."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system_tests import bits, example
from tests.system_tests.launcher import Run
from tests.system_tests.nodes import INTERFACE, Cluster, NoNodes
from tests.system_tests.report import Compared

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.xdist_group("crash"), pytest.mark.timeout(900)]

MINUTES = 1
"""That a rank waits for another."""
SAVED = f"successfully saved checkpoint from iteration {example.INTERVAL:7d}"
GRACE = 60
"""Seconds that torchrun may take to end all processes when one has."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    try:
        with Cluster() as cluster:
            yield cluster
    except NoNodes as error:
        pytest.skip(f"This machine allows no network namespaces, which need root: {error}")


def train(cluster: Cluster, folder: Path, watch: Callable[[str, int], object] | None = None) -> list[Run]:
    """The script on both nodes, one process each, as in examples/mixtral/README.md."""
    common = {"NNODES": 2, "GPUS_PER_NODE": 1, "MASTER_ADDR": cluster.ADDRESSES[0], "GLOO_SOCKET_IFNAME": INTERFACE}
    waits = ("--distributed-timeout-minutes", MINUTES)
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(
                example.train,
                folder,
                *waits,
                watch=watch,
                before=node.enter,
                **common,
                NODE_RANK=number,
                MASTER_PORT=29500,
            )
            for number, node in enumerate(cluster.nodes)
        ]
        return [run.result() for run in runs]


def test_cut_off_and_resumed(cluster: Cluster, undisturbed: Path, tmp_path: Path, compared: Compared) -> None:
    cut = []

    def watch(line: str, _agent: int) -> None:
        if SAVED in line and not cut:
            cut.append(time.monotonic())
            cluster.cut()

    for run in train(cluster, tmp_path, watch):
        assert re.search("lost another rank.*Timed out waiting", run.failed().output), run.tail()
    assert 60 * MINUTES - 5 < time.monotonic() - cut[0] < 60 * MINUTES + GRACE

    cluster.mend()
    _, last = (run.succeeded() for run in train(cluster, tmp_path))
    assert min(last.iterations) == example.INTERVAL + 1  # the last rank logs
    compared.differing(
        "Two nodes, cut off and resumed, and an undisturbed run on one",
        "tensors and scalars that differ at the end",
        bits.differing(tmp_path, undisturbed, example.RESUMED),
    )
