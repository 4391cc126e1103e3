"""Upstream checkouts given on the command line, for the tests marked `checkouts`."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--megatron-path", action="append", default=[], type=Path, help="a Megatron-LM checkout to train (repeatable)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "checkout" in metafunc.fixturenames:
        paths = metafunc.config.getoption("--megatron-path")
        ids = [path.name for path in paths] or ["none given"]
        metafunc.parametrize("checkout", paths or [None], ids=ids, scope="module")
