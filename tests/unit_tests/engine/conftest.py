"""A made-up upstream package on sys.path, one per test, with a name of its own."""

from __future__ import annotations

import importlib
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ascend_patch.engine.patch import Patch

_count = itertools.count()


class Stubs:
    """Writes modules below a folder that is on sys.path.

    In every text, UP stands for the name of this test's upstream package and IMPL for the module with the
    implementations.
    """

    def __init__(self, folder: Path) -> None:
        number = next(_count)
        self.folder = folder
        self.up = f"stub_upstream_{number}"
        self.impl = f"stub_impl_{number}"

    def named(self, text: str) -> str:
        return textwrap.dedent(text).replace("UP", self.up).replace("IMPL", self.impl)

    def write(self, files: dict[str, str]) -> Path:
        """Write {"UP/__init__.py": source, ...} and forget what Python remembers of these folders."""
        for name, text in files.items():
            path = self.folder / self.named(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.named(text))
        importlib.invalidate_caches()
        return self.folder

    def load(self, name: str):
        return importlib.import_module(self.named(name))

    def patch(self, target: str, impl: str = "IMPL:ten", mode: str = "wrap", **fields) -> Patch:
        fields = {
            "id": "stub.patch",
            "upstream": ">=1,<3",
            "reason": "A test.",
            "remove_when": "Never.",
        } | fields
        fields["consumers"] = tuple(self.named(one) for one in fields.get("consumers", ()))
        return Patch(target=self.named(target), impl=self.named(impl), mode=mode, **fields)

    def forget(self) -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in (self.up, self.impl)]:
            del sys.modules[name]


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubs]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # tests rewrite sources within one mtime tick
    made = Stubs(tmp_path)
    yield made
    made.forget()


@pytest.fixture
def fired() -> list[str]:
    return []


@pytest.fixture
def note(fired: list[str]) -> Callable[[str], Callable]:
    """note("x") is a callback that appends "x" to `fired`."""
    return lambda name: lambda subject: fired.append(name)
