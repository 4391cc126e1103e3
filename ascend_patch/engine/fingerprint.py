"""Fingerprints of upstream symbols, from source text alone: nothing is imported.

A fingerprint says what callers rely on (`signature`) and what the code does (`body`), so that formatting,
comments, docstrings and annotations do not count:

* function or method: signature = names, kinds and defaults of the parameters; body = decorators and
  statements. An inherited method is looked up along the bases, also in other modules.
* class: signature = bases and the signature of its own `__init__`; body = the whole class.
* name: any other binding (assignment, import), also inside if / try / with; signature = none; body = the
  statements that bind it, each with the conditions it stands under.

The hashes do not depend on the Python version that computes them, as long as its grammar gives the same tree.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_IGNORED_FIELDS = frozenset({"ctx", "annotation", "returns", "type_comment", "kind"})
_MAX_IMPORTS = 20  # re-exports followed to find one class


@dataclass(frozen=True)
class Source:
    """Source of one module. `data`: the file's bytes; `is_package`: whether the file is an `__init__.py`."""

    data: bytes
    is_package: bool


Read = Callable[[str], Source | None]
"""Source of a module by its dotted name, or None when there is no such module."""


@dataclass(frozen=True)
class Fingerprint:
    """Identity of one upstream symbol.

    Attributes:
        kind: what the symbol is.
        signature: hash of what callers rely on; "" for a name.
        body: hash of what the code does.
        modules: the modules whose source was needed; the symbol's own comes first.
    """

    kind: Literal["function", "class", "name"]
    signature: str
    body: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class _Binding:
    """One statement that binds a name, and the conditions it stands under, outermost first."""

    node: ast.stmt
    conditions: tuple[str, ...] = ()


class SourceTree:
    """Fingerprints over one tree of sources; every module is read and parsed at most once."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._sources: dict[str, Source | None] = {}
        self._hashes: dict[str, str | None] = {}
        self._parsed: dict[str, ast.Module] = {}

    def source(self, module: str) -> Source | None:
        """Source of the module, or None when there is none."""
        if module not in self._sources:
            self._sources[module] = self._read(module)
        return self._sources[module]

    def file_hash(self, module: str) -> str | None:
        """SHA-256 of the module's source file, or None when there is none."""
        if module not in self._hashes:
            source = self.source(module)
            self._hashes[module] = None if source is None else hashlib.sha256(source.data).hexdigest()
        return self._hashes[module]

    def covers(self, module: str) -> bool:
        """Whether the module, or a package above it, is in the tree.

        Several distributions fill the namespace package `megatron`. A tree without `megatron.training` does
        not cover `megatron.training.x`; one with it and without x does: there, x has vanished.
        """
        parts = module.split(".")
        return any(self.source(".".join(parts[:end])) is not None for end in range(1, len(parts) + 1))

    def fingerprint(self, symbol: str) -> Fingerprint | None:
        """Fingerprint of "module:qualname", or None when it is absent.

        Raises:
            SyntaxError: a module cannot be parsed by this Python.
        """
        module, _, qualname = symbol.partition(":")
        modules = [module]
        *path, name = qualname.split(".")
        owner: ast.Module | ast.ClassDef = self._tree(module)
        for part in path:
            classes = [b.node for b in _bindings(owner.body, part) if isinstance(b.node, ast.ClassDef)]
            if not classes:
                return None
            owner = classes[-1]
        found = list(_bindings(owner.body, name))
        if not found and isinstance(owner, ast.ClassDef):
            found = self._inherited(owner, name, module, modules)
        return _fingerprint(found, tuple(dict.fromkeys(modules))) if found else None

    def _tree(self, module: str) -> ast.Module:
        if module not in self._parsed:
            source = self.source(module)
            self._parsed[module] = ast.parse(source.data if source else b"", filename=module)
        return self._parsed[module]

    def _inherited(self, owner: ast.ClassDef, name: str, module: str, modules: list[str]) -> list[_Binding]:
        """Bindings of `name` in the first base that has it, depth first; adds the modules read."""
        for base in owner.bases:
            found = self._find_class(ast.unparse(base), module, modules)
            if found is None or found[0] is owner:
                continue
            node, home = found
            bindings = list(_bindings(node.body, name)) or self._inherited(node, name, home, modules)
            if bindings:
                return bindings
        return []

    def _find_class(self, dotted: str, module: str, modules: list[str]) -> tuple[ast.ClassDef, str] | None:
        """The class that `dotted` means in `module`, following imports, and the module that defines it."""
        for _ in range(_MAX_IMPORTS):
            first, _, rest = dotted.partition(".")
            bindings = list(_bindings(self._tree(module).body, first))
            if not bindings:
                return None
            node = bindings[0].node
            if isinstance(node, ast.ClassDef):
                return None if rest else (node, module)
            target = self._import_target(node, first, module)
            if target is None:
                return None
            module, dotted = self._split(f"{target}.{rest}" if rest else target)
            if not dotted:
                return None
            modules.append(module)
        return None

    def _import_target(self, node: ast.stmt, name: str, module: str) -> str | None:
        """Dotted path that an import statement in `module` gives to `name`."""
        if isinstance(node, ast.Import):
            alias = node.names[0]
            return alias.name if alias.asname else name
        if not isinstance(node, ast.ImportFrom):
            return None
        source = self.source(module)
        package = module if source and source.is_package else module.rpartition(".")[0]
        parts = package.split(".")
        prefix = parts[: len(parts) - node.level + 1] if node.level else []
        return ".".join([*prefix, *([node.module] if node.module else []), node.names[0].name])

    def _split(self, dotted: str) -> tuple[str, str]:
        """Split "a.b.C" into the longest part that is a module with source, and the rest."""
        parts = dotted.split(".")
        for end in range(len(parts), 0, -1):
            module = ".".join(parts[:end])
            if self.source(module) is not None:
                return module, ".".join(parts[end:])
        return dotted, ""


def _bindings(body: list[ast.stmt], name: str, conditions: tuple[str, ...] = ()) -> Iterator[_Binding]:
    """Every statement of a module or class body that binds `name`, whatever it is nested in."""
    for node in body:
        if _binds(node, name):
            yield _Binding(_alone(node, name), conditions)
        elif isinstance(node, ast.If | ast.While):
            test = _canonical(node.test)
            yield from _bindings(node.body, name, (*conditions, f"if {test}"))
            yield from _bindings(node.orelse, name, (*conditions, f"else {test}"))
        elif isinstance(node, ast.Try | ast.TryStar):
            yield from _bindings(node.body, name, (*conditions, "try"))
            for handler in node.handlers:
                caught = _canonical(handler.type) if handler.type else ""
                yield from _bindings(handler.body, name, (*conditions, f"except {caught}"))
            yield from _bindings(node.orelse, name, (*conditions, "try else"))
            yield from _bindings(node.finalbody, name, (*conditions, "finally"))
        elif isinstance(node, ast.With | ast.For):
            yield from _bindings(node.body, name, (*conditions, type(node).__name__))


def _binds(node: ast.stmt, name: str) -> bool:
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        return node.name == name
    if isinstance(node, ast.Import | ast.ImportFrom):
        return any(_bound_name(alias) == name for alias in node.names)
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    names = (part for target in targets for part in ast.walk(target))
    return any(isinstance(part, ast.Name) and part.id == name for part in names)


def _alone(node: ast.stmt, name: str) -> ast.stmt:
    """An import of several names, narrowed to the one that matters; any other statement as it is."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return node
    names = [alias for alias in node.names if _bound_name(alias) == name]
    if isinstance(node, ast.Import):
        return ast.Import(names=names)
    return ast.ImportFrom(module=node.module, names=names, level=node.level)


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _fingerprint(bindings: list[_Binding], modules: tuple[str, ...]) -> Fingerprint:
    nodes = [binding.node for binding in bindings]
    body = _hash(*(f"{binding.conditions}{_canonical(binding.node)}" for binding in bindings))
    if all(isinstance(node, _FUNCTIONS) for node in nodes):
        signature = _hash(*(_canonical(node.args) for node in nodes if isinstance(node, _FUNCTIONS)))
        return Fingerprint("function", signature, body, modules)
    if all(isinstance(node, ast.ClassDef) for node in nodes):
        signature = _hash(*(_class_signature(node) for node in nodes if isinstance(node, ast.ClassDef)))
        return Fingerprint("class", signature, body, modules)
    return Fingerprint("name", "", body, modules)


def _class_signature(node: ast.ClassDef) -> str:
    inits = [b.node.args for b in _bindings(node.body, "__init__") if isinstance(b.node, _FUNCTIONS)]
    return "".join(_canonical(part) for part in (*node.bases, *node.keywords, *inits))


def _canonical(node: ast.AST) -> str:
    """A text that is equal for equal code: no positions, annotations, docstrings or empty fields."""
    parts = []
    for name, value in ast.iter_fields(node):
        if name in _IGNORED_FIELDS or value is None or value == []:
            continue
        if isinstance(value, list):
            items = _without_docstring(node, value) if name == "body" else value
            text = ",".join(_canonical(item) if isinstance(item, ast.AST) else repr(item) for item in items)
            parts.append(f"{name}=[{text}]")
        elif isinstance(value, ast.AST):
            parts.append(f"{name}={_canonical(value)}")
        else:
            parts.append(f"{name}={value!r}")
    return f"{type(node).__name__}({','.join(parts)})"


def _without_docstring(node: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
    if not isinstance(node, (*_FUNCTIONS, ast.ClassDef)) or not body:
        return body
    first = body[0]
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return body[1:] if is_text else body


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
