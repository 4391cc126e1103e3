"""Attribute substitution that can be undone exactly.

Every device translation goes through one :class:`Substitutions`, so that ``revert()`` gives back the
identical objects, and a reader finds every change of PyTorch by looking for its callers. It is not the patch
engine: it knows neither versions nor fingerprints, and touches PyTorch only, never Megatron.
"""

from collections.abc import Callable, Iterable
from typing import Any

_ABSENT = object()


class Substitutions:
    """A record of attributes that were replaced, newest last."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set ``owner.name`` to `value`. `owner`, a module or class, need not have the attribute yet."""
        # vars(), not getattr(): an inherited attribute has to be deleted again, and a static or class method
        # has to come back as its descriptor.
        original = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        if original is _ABSENT:
            self._undo.append(lambda: delattr(owner, name))
        else:
            self._undo.append(lambda: setattr(owner, name, original))

    def wrap(self, owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
        """Set ``owner.name`` to ``wrapper(original)``."""
        self.set(owner, name, wrapper(getattr(owner, name)))

    def set_in_all(self, owners: Iterable[Any], name: str, value: Any) -> None:
        """Set `name` in the first owner, and in those others that hold the same object under this name.

        For functions that PyTorch re-exports: ``torch.cuda.device_count`` is also a global of
        ``torch.cuda.random``, and each of the two is looked up where it was imported to.
        """
        first, *others = owners
        original = vars(first).get(name, _ABSENT)
        self.set(first, name, value)
        for owner in others:
            if original is not _ABSENT and vars(owner).get(name, _ABSENT) is original:
                self.set(owner, name, value)

    def on_revert(self, callback: Callable[[], None]) -> None:
        """Have `callback` called in turn by :meth:`revert`, for a change that is not an attribute."""
        self._undo.append(callback)

    def revert(self) -> None:
        """Undo everything, newest first. Afterwards the record is empty and can be used again."""
        while self._undo:
            self._undo.pop()()
