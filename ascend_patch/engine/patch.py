"""What a patch is: plain, frozen data. Nothing here imports or changes anything.

A feature declares its patches next to the wrappers they install; `ascend_patch.engine.apply.Engine`
is the only reader that acts on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from ascend_patch.engine.errors import DeclarationError

Status = Literal["pending", "applied", "skipped", "failed"]

_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class Environment:
    """Where patches are about to be applied.

    Attributes:
        device: "cpu", "cuda" or "npu".
        upstream: version of the installed Megatron-LM, for example "0.19.2"; "" when it is not known.
    """

    device: str
    upstream: str


def always(environment: Environment) -> str | None:
    """The default of `Patch.when`: apply everywhere."""
    return None


@dataclass(frozen=True)
class Patch:
    """One upstream name and what takes its place.

    Several rows may share an id: one concept with several targets, or one target in disjoint version
    ranges. Disabling the id disables all of its rows.

    Attributes:
        id: lower-case dotted name, "moe.grouped_mlp".
        target: "package.module:Class.method", ":function" or ":NAME".
        impl: "package.module:name", imported only when the patch fires.
        mode: "wrap" calls `impl(original)` and installs what it returns; "replace" installs `impl` itself.
            For a staticmethod, classmethod, property or cached_property, `original` and the result are the
            plain function inside; the engine takes it out and puts the new one back in.
        upstream: PEP 440 range of Megatron-LM versions, ">=0.17,<0.20".
        reason: why the patch exists, in one or two sentences.
        remove_when: what must happen upstream, or in torch_npu, for it to go.
        when: None to apply, or the reason why the patch is skipped in this environment.
        consumers: further upstream symbols whose code the patch relies on. They are fingerprinted with the
            target; a change in one of them fails a replace and is a notice for a wrap.

    Raises:
        DeclarationError: a field is malformed or empty.
    """

    id: str
    target: str
    impl: str
    mode: Literal["wrap", "replace"]
    upstream: str
    reason: str
    remove_when: str
    when: Callable[[Environment], str | None] = always
    consumers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise DeclarationError(f"patch id {self.id!r} is not a lower-case dotted name such as 'moe.router'.")
        for field in (self.target, self.impl, *self.consumers):
            if not _REFERENCE.fullmatch(field):
                raise DeclarationError(f"patch {self.id}: {field!r} is not of the form 'package.module:qualname'.")
        if self.mode not in ("wrap", "replace"):
            raise DeclarationError(f"patch {self.id}: mode is {self.mode!r}; it must be 'wrap' or 'replace'.")
        for name in ("reason", "remove_when"):
            if not getattr(self, name).strip():
                raise DeclarationError(f"patch {self.id}: {name} is empty; say it in a sentence.")
        try:
            SpecifierSet(self.upstream)
        except InvalidSpecifier as error:
            raise DeclarationError(f"patch {self.id}: upstream {self.upstream!r} is not a PEP 440 range.") from error

    @cached_property
    def range(self) -> SpecifierSet:
        """`upstream`, parsed."""
        return SpecifierSet(self.upstream)

    @property
    def module(self) -> str:
        """The module part of `target`."""
        return self.target.partition(":")[0]

    @property
    def qualname(self) -> str:
        """The part of `target` after the colon."""
        return self.target.partition(":")[2]

    def supports(self, version: str) -> bool:
        """Whether `version` lies in `upstream`. Pre-releases count; an unknown ("" or odd) version does too:
        the fingerprints decide there.
        """
        try:
            return self.range.contains(Version(version), prereleases=True)
        except InvalidVersion:
            return True


@dataclass(frozen=True)
class Outcome:
    """What became of one `Patch` row.

    Attributes:
        id: the patch's id.
        target: the patch's target.
        status: "pending" until the target's module is imported; then "applied", "skipped" or "failed".
        detail: why it was skipped or failed, otherwise "".
        notices: things worth knowing that do not stop a run.
    """

    id: str
    target: str
    status: Status
    detail: str = ""
    notices: tuple[str, ...] = ()
