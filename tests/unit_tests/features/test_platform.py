"""Compiling upstream's dataset helpers, or not."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from ascend_patch.features.platform import compile_helpers


def test_nothing_is_compiled_where_the_module_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    compile_helpers(lambda: pytest.fail("compiled"))()


@pytest.mark.parametrize("fails", [False, True])
def test_upstream_compiles_with_this_interpreter_first(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """And the path is as before, whatever happens."""
    paths = []

    def original() -> None:
        paths.append(os.environ["PATH"])
        if fails:
            sys.exit(1)

    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if fails:
        with pytest.raises(SystemExit):
            compile_helpers(original)()
    else:
        compile_helpers(original)()
    assert paths == [f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"]
    assert os.environ["PATH"] == "/usr/bin"


def test_the_wheel_carries_the_module() -> None:
    """Why the patch has nothing to do there; what it replaces needs a Makefile, which the wheel does not carry."""
    spec = importlib.util.find_spec("megatron.core.datasets.helpers_cpp")
    assert spec is not None
    assert not (Path(spec.origin).parent / "Makefile").exists()
