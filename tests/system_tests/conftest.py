"""Upstream checkouts given on the command line, for the tests marked `checkouts`; a server of Megatron jobs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system_tests import example
from tests.system_tests.megatron_server import Server
from tests.system_tests.report import Compared, Recorder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--megatron-path", action="append", default=[], type=Path, help="a Megatron-LM checkout to train (repeatable)"
    )
    parser.addoption("--records", type=Path, metavar="FILE", help="write what was compared, for the report, to FILE")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("records", None)
    if file and not hasattr(config, "workerinput"):  # not in a worker of pytest-xdist
        config.pluginmanager.register(Recorder(file))


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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the example script, deterministic and in two processes, has left its events and checkpoints."""
    folder = tmp_path_factory.mktemp("undisturbed")
    example.train(folder).succeeded()
    return folder


@pytest.fixture
def compared(record_property: Callable[[str, object], None]) -> Compared:
    """What a test compares goes through it, into the report."""
    return Compared(record_property)
