"""activate() by itself; what it does to torch and Megatron is in tests/system_tests/test_activation.py."""

import os
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from ascend_patch import _autoload, activation
from ascend_patch.config import Config
from ascend_patch.engine.errors import AscendPatchError

ROOT = "stub_megatron.core"


@pytest.fixture(autouse=True)
def _stub_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another package in Megatron's place: this process may have imported the real one."""
    monkeypatch.setattr(activation, "_ROOT", ROOT)
    monkeypatch.setattr(activation, "_active", None)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in [name for name in os.environ if name.startswith("ASCEND_PATCH")]:
        monkeypatch.delenv(name)


def test_second_call_changes_nothing() -> None:
    before = list(sys.meta_path)
    first = activation.activate(Config())
    finders = list(sys.meta_path)
    assert len(finders) == len(before) + 1
    assert activation.activate() is first
    assert sys.meta_path == finders
    assert first.prepared is None  # no Megatron, no device


def test_revert() -> None:
    before, hook = list(sys.meta_path), sys.excepthook
    activation.activate(Config()).revert()
    assert sys.meta_path == before
    assert sys.excepthook is hook


def test_can_be_activated_again_after_revert() -> None:
    first = activation.activate(Config())
    first.revert()
    second = activation.activate(Config())
    assert second is not first
    second.revert()


def test_megatron_imported_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sys.meta_path)
    monkeypatch.setitem(sys.modules, ROOT, ModuleType(ROOT))
    with pytest.raises(AscendPatchError, match=r"imported before .*import ascend_patch\.adaptor"):
        activation.activate(Config())
    assert sys.meta_path == before


@pytest.mark.parametrize(("value", "active"), [(None, False), ("0", False), ("1", True)])
def test_entry_point_is_inert_unless_asked(monkeypatch: pytest.MonkeyPatch, value: str | None, active: bool) -> None:
    if value is not None:
        monkeypatch.setenv("ASCEND_PATCH", value)
    _autoload.autoload()
    assert (activation._active is not None) is active
    if active:
        activation._active.revert()
