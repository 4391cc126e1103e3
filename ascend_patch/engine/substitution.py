"""Putting one object in the place of another, and the exact way back.

This is the only module that sets attributes of upstream modules and classes. It knows nothing of patches:
what is put where is decided in `ascend_patch.engine.apply`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

_MISSING: Any = object()

Make = Callable[[Any], Any]


@dataclass
class Substitution:
    """One attribute that was set: `vars(owner)[name]` was `previous` (or absent) and became `installed`."""

    owner: Any
    name: str
    previous: Any
    installed: Any
    also: list[tuple[ModuleType, str]] = field(default_factory=list)

    def restore(self) -> bool:
        """Put the previous object back, by identity; an attribute that did not exist is deleted.

        Returns:
            False when somebody else has set the attribute since. It is then left as it is.
        """
        if vars(self.owner).get(self.name, _MISSING) is not self.installed:
            return False
        if self.previous is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.previous)
        for module, name in self.also:
            if vars(module).get(name, _MISSING) is self.installed:
                setattr(module, name, self.previous)
        return True


def find_owner(module: ModuleType, qualname: str) -> tuple[Any, str]:
    """The module or class that `qualname` is an attribute of, and the attribute's name, bound or not.

    Raises:
        LookupError: a class on the way does not exist; the text says which.
    """
    owner: Any = module
    *path, name = qualname.split(".")
    for part in path:
        if not hasattr(owner, part):
            raise LookupError(f"{module.__name__} has no {qualname}: {part!r} is missing")
        owner = getattr(owner, part)
    return owner, name


def is_bound(owner: Any, name: str) -> bool:
    """Whether the attribute exists, inherited or own."""
    return _lookup(owner, name) is not _MISSING


def substitute(owner: Any, name: str, make: Make) -> Substitution:
    """Replace `owner.name` by `make(original)`; `original` is None for an attribute that does not exist.

    `make` sees, and returns, the plain function inside a staticmethod, classmethod, property or
    cached_property. A function that takes a function's place keeps its name, docstring and module, and has
    the original as `__wrapped__`.
    """
    current = _lookup(owner, name)
    previous = vars(owner).get(name, _MISSING)
    installed = make(None) if current is _MISSING else _rebuild(current, make)
    setattr(owner, name, installed)
    if isinstance(installed, functools.cached_property):
        installed.__set_name__(owner, name)
    return Substitution(owner, name, previous, installed)


def rebind_copies(substitution: Substitution) -> None:
    """Rebind names that other modules took from the owner while it was still being imported.

    That happens in import cycles only: such a module is younger than the owner in `sys.modules`, so older
    ones are not looked at. Attributes of classes are never copied that way.
    """
    owner, original = substitution.owner, substitution.previous
    if not isinstance(owner, ModuleType) or not callable(original):
        return
    names = list(sys.modules)
    younger = names[names.index(owner.__name__) + 1 :] if owner.__name__ in sys.modules else []
    for module in (sys.modules.get(name) for name in younger):
        if not isinstance(module, ModuleType) or module is owner:
            continue
        for name, value in list(vars(module).items()):
            if value is original:
                setattr(module, name, substitution.installed)
                substitution.also.append((module, name))


def _lookup(owner: Any, name: str) -> Any:
    """The raw attribute, without calling descriptors; along the MRO for a class."""
    for namespace in owner.__mro__ if isinstance(owner, type) else (owner,):
        if name in vars(namespace):
            return vars(namespace)[name]
    if isinstance(owner, ModuleType):
        return getattr(owner, name, _MISSING)  # a module's own __getattr__
    return _MISSING


def _rebuild(current: Any, make: Make) -> Any:
    """`make` applied inside the descriptor `current`, or to `current` itself."""
    if isinstance(current, staticmethod | classmethod):
        return type(current)(_dress(make(current.__func__), current.__func__))
    if isinstance(current, property):
        getter = _dress(make(current.fget), current.fget)
        return type(current)(getter, current.fset, current.fdel, current.__doc__)
    if isinstance(current, functools.cached_property):
        return type(current)(_dress(make(current.func), current.func))
    return _dress(make(current), current)


def _dress(new: Any, original: Any) -> Any:
    """Give a function the identity of the one it replaces, on a copy: an impl may serve several targets."""
    if not isinstance(new, FunctionType) or not isinstance(original, FunctionType) or new is original:
        return new
    if vars(new).get("__wrapped__") is original:
        return new
    dressed = FunctionType(new.__code__, new.__globals__, new.__name__, new.__defaults__, new.__closure__)
    dressed.__kwdefaults__ = new.__kwdefaults__
    dressed.__dict__.update(vars(new))
    for name, value in vars(original).items():
        dressed.__dict__.setdefault(name, value)
    identity = ("__module__", "__name__", "__qualname__", "__doc__")
    return functools.update_wrapper(dressed, original, assigned=identity, updated=())
