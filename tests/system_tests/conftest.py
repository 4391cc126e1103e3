"""Upstream checkouts given on the command line, for the tests marked `checkouts`; a server of Megatron jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system_tests.megatron_server import Server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--megatron-path", action="append", default=[], type=Path, help="a Megatron-LM checkout to train (repeatable)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "checkout" in metafunc.fixturenames:
        paths = metafunc.config.getoption("--megatron-path")
        ids = [path.name for path in paths] or ["none given"]
        metafunc.parametrize("checkout", paths or [None], ids=ids, scope="module")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Jobs of the installed Megatron without the start, for tests of the group `logits`."""
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server
