"""Callbacks right before and right after a module executes. This is not a loader of its own.

`ImportHooks` is a finder at the head of `sys.meta_path`. For a hooked module it asks the other finders for
the spec and puts a thin loader around theirs. Three rules keep everybody else's tools working:

* Finding is not importing: `importlib.util.find_spec` and `python -m` never fire a callback.
* The native loader is put back before the module executes, so `__loader__`, `__spec__.loader`,
  `inspect.getsource`, `importlib.resources` and pickling see what they would see without hooks.
* A callback runs inside the module's own import lock. If it raises, the import fails with that error and
  the module is not left in `sys.modules`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any, cast

Before = Callable[[ModuleSpec], None]
After = Callable[[ModuleType], None]


class ImportHooks(MetaPathFinder):
    """Registry of callbacks keyed by full module name.

    Callbacks of one module run in the order of their registration, again at `importlib.reload`. A module
    that is already in `sys.modules` is not looked at: whether that matters is for the caller to say.
    """

    def __init__(self) -> None:
        self._before: dict[str, list[Before]] = {}
        self._after: dict[str, list[After]] = {}
        self._finding = threading.local()
        self._executing: set[str] = set()

    def before(self, module: str, callback: Before) -> None:
        """Call `callback(spec)` right before the body of `module` executes."""
        self._before.setdefault(module, []).append(callback)

    def after(self, module: str, callback: After) -> None:
        """Call `callback(module object)` when its body has executed, before importers bind names from it."""
        self._after.setdefault(module, []).append(callback)

    def discard(self, module: str, callback: Before | After) -> None:
        """Take a registration back; one that does not exist is ignored."""
        self._before[module] = [kept for kept in self._before.get(module, []) if kept != callback]
        self._after[module] = [kept for kept in self._after.get(module, []) if kept != callback]

    def in_time(self, module: str) -> bool:
        """Whether an `after` callback registered now would still see the import of `module`."""
        return module not in sys.modules or module in self._executing

    def install(self) -> None:
        """Put the finder at the head of `sys.meta_path`; a second call changes nothing."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def uninstall(self) -> None:
        """Take the finder out of `sys.meta_path`; registrations stay."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The other finders' spec with a hooked loader, or None for a module nobody asked about."""
        if not self._before.get(fullname) and not self._after.get(fullname):
            return None
        # Another hooking finder may ask sys.meta_path, and so us, again for the same name.
        finding = vars(self._finding).setdefault("names", set())
        if fullname in finding:
            return None
        finding.add(fullname)
        try:
            spec = _find_elsewhere(self, fullname, path, target)
        finally:
            finding.discard(fullname)
        if spec is not None:
            spec.loader = _HookedLoader(spec.loader or _namespace_loader(spec), self)
        return spec

    def _execute(self, native: Loader, module: ModuleType, spec: ModuleSpec) -> None:
        self._executing.add(spec.name)
        try:
            for before in tuple(self._before.get(spec.name, ())):
                before(spec)
            native.exec_module(module)
            # A module may put another object in its place in sys.modules; that one is what importers get.
            module = sys.modules.get(spec.name, module)
            for after in tuple(self._after.get(spec.name, ())):
                after(module)
        finally:
            self._executing.discard(spec.name)


class _HookedLoader(Loader):
    """The native loader, with the callbacks around `exec_module`. Everything else is the native loader's."""

    def __init__(self, native: Loader, hooks: ImportHooks) -> None:
        self._native = native
        self._hooks = hooks

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._native.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is None:
            raise ImportError(f"module {module.__name__} has no __spec__, so it cannot be executed.")
        module.__loader__ = spec.loader = self._native
        if spec.origin is None and spec.submodule_search_locations is not None:
            module.__file__ = None  # as importlib leaves a namespace package
        self._hooks._execute(self._native, module, spec)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._native,)  # hooks belong to one process


def _unpickled(native: Loader) -> Loader:
    return native


def _find_elsewhere(
    hooks: ImportHooks, fullname: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if finder is hooks or find is None:
            continue
        spec = find(fullname, path, target)
        if spec is not None:
            return spec
    return None


def _namespace_loader(spec: ModuleSpec) -> Loader:
    """importlib gives a namespace package its loader only while it creates the module: have it made early."""
    bare = ModuleSpec(spec.name, None, is_package=True)
    bare.submodule_search_locations = spec.submodule_search_locations
    return cast(Loader, module_from_spec(bare).__loader__)
