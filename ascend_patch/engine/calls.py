"""Which npu operators a source file calls and with what, read from its syntax tree: nothing is imported.

Recognised are `torch_npu.npu_x(…)`, `torch.ops.npu.npu_x(…)`, both with an overload (`.out`), names imported from
torch_npu, and `torch.ops.npu`, torch_npu or an operator under another name. `**options` is followed to the
dictionary in the same function, `**options_of(…)` to the dictionaries that the function in the same file returns,
`*pair` to the annotation `tuple[float, float]`. What cannot be followed makes the call incomplete; it is never
guessed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_PACKAGE = "torch_npu"
_NAMESPACE = "torch.ops.npu"
_PREFIXES = ("npu_", "_npu_")  # what torch_npu calls its operators; its other attributes are no operators


@dataclass(frozen=True)
class Call:
    """One place where an operator is used.

    Attributes:
        operator: its name, "npu_rms_norm".
        overload: "out"; "" where torch chooses.
        positional: how many arguments are given without their names.
        keywords: the names of the others, in every branch together.
        values: how many values the result is unpacked into, 0 where that cannot be seen.
        line: where the call is.
        called: False where the operator is only named, to be called elsewhere.
        unread: what could not be read, "*args"; "" for a complete call.
    """

    operator: str
    overload: str = ""
    positional: int = 0
    keywords: tuple[str, ...] = ()
    values: int = 0
    line: int = 0
    called: bool = True
    unread: str = ""

    @property
    def name(self) -> str:
        """Operator and overload, "npu_apply_adam_w.out"."""
        return f"{self.operator}.{self.overload}" if self.overload else self.operator

    def __str__(self) -> str:
        if not self.called:
            return self.name
        given = [str(self.positional)] if self.positional else []
        return f"{self.name}({', '.join([*given, *(f'{keyword}=' for keyword in self.keywords)])})"


def calls_in(source: str) -> tuple[Call, ...]:
    """Every use of an npu operator in `source`, in the order of lines.

    Raises:
        SyntaxError: it is not Python.
    """
    tree = ast.parse(source)
    finder = _Finder({node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)})
    finder.visit(tree)
    return tuple(sorted(finder.found, key=lambda call: (call.line, call.operator)))


@dataclass(frozen=True)
class _Scope:
    """What the names of a function, or of the file, are known to be."""

    paths: dict[str, str] = field(default_factory=dict)
    keys: dict[str, set[str] | None] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)

    def inside(self, arguments: ast.arguments) -> _Scope:
        """The same within a function, whose parameters hide names and may be annotated."""
        hidden = {parameter.arg: _length(parameter.annotation) for parameter in _parameters(arguments)}
        return _Scope(
            {name: path for name, path in self.paths.items() if name not in hidden},
            {name: keys for name, keys in self.keys.items() if name not in hidden},
            {name: length for name, length in (self.lengths | hidden).items() if length is not None},
        )


class _Finder(ast.NodeVisitor):
    """Collects calls.

    Args:
        functions: the functions of the file by name.
    """

    def __init__(self, functions: Mapping[str, ast.FunctionDef]) -> None:
        self.found: list[Call] = []
        self._functions = functions
        self._scope = _Scope()
        self._values: dict[ast.AST, int] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.asname:
                self._scope.paths[alias.asname] = alias.name

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0:
            for alias in node.names:
                self._scope.paths[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self._scope = self._scope, self._scope.inside(node.args)
        self.generic_visit(node)
        self._scope = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, node.value)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._update(node.target.id, node.value if isinstance(node.op, ast.BitOr) else None)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = self._operator(node.func)
        if called is not None:
            keywords, unread = self._keywords(node.keywords)
            positional, stars = self._positional(node.args)
            self.found.append(
                Call(
                    *called,
                    positional=positional,
                    keywords=keywords,
                    values=self._values.get(node, 0),
                    line=node.lineno,
                    unread=", ".join([*stars, *unread]),
                )
            )
        else:
            match node.func:
                case ast.Attribute(value=ast.Name(id=name), attr="update"):  # options.update(…)
                    self._update(name, ast.Call(ast.Name("dict", ast.Load()), node.args, node.keywords))
            self.visit(node.func)
        for argument in (*node.args, *node.keywords):
            self.visit(argument)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        named = self._operator(node)
        if named is not None:
            self.found.append(Call(*named, line=node.lineno, called=False))
        else:
            self.generic_visit(node)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and not any(isinstance(one, ast.Starred) for one in target.elts):
            self._values[value] = len(target.elts)
        elif isinstance(target, ast.Name):
            path = self._path(value)
            if path is not None:
                self._scope.paths[target.id] = path
            else:
                self._scope.paths.pop(target.id, None)
            keys = self._keys(value)
            if target.id in self._scope.keys:  # in another branch perhaps, so that both count
                keys = _joined([self._scope.keys[target.id], keys])
            self._scope.keys[target.id] = keys
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):  # options["key"] = …
            self._update(target.value.id, ast.Dict([target.slice], [value]))

    def _update(self, name: str, value: ast.expr | None) -> None:
        known, more = self._scope.keys.get(name), None if value is None else self._keys(value)
        self._scope.keys[name] = None if known is None or more is None else known | more

    def _positional(self, given: list[ast.expr]) -> tuple[int, list[str]]:
        count, unread = 0, []
        for argument in given:
            length: int | None = 1
            if isinstance(argument, ast.Starred):
                length = self._scope.lengths.get(argument.value.id) if isinstance(argument.value, ast.Name) else None
                unread += [ast.unparse(argument)] if length is None else []
            count += length or 0
        return count, unread

    def _keywords(self, given: list[ast.keyword]) -> tuple[tuple[str, ...], list[str]]:
        names: list[str] = []
        unread = []
        for keyword in given:
            keys = {keyword.arg} if keyword.arg else self._keys(keyword.value)
            names += sorted(keys or ())
            unread += [f"**{ast.unparse(keyword.value)}"] if keys is None else []
        return tuple(dict.fromkeys(names)), unread

    def _keys(self, value: ast.expr) -> set[str] | None:
        """The keys of a dictionary; None where they cannot be seen."""
        if isinstance(value, ast.Name):
            return self._scope.keys.get(value.id)
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
            return _joined([self._keys(value.left), self._keys(value.right)])
        if isinstance(value, ast.IfExp):
            return _joined([self._keys(value.body), self._keys(value.orelse)])
        if isinstance(value, ast.Dict):
            parts = zip(value.keys, value.values, strict=True)
            return _joined([_constant(key) if key else self._keys(item) for key, item in parts])
        if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name)):
            return None
        if value.func.id == "dict":
            given = [self._keys(argument) for argument in value.args]
            return _joined(given + [{one.arg} if one.arg else self._keys(one.value) for one in value.keywords])
        function = self._functions.get(value.func.id)
        returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)] if function else []
        written = [self._keys(one) for one in returned if isinstance(one, ast.Dict)]
        return _joined(written) if written and len(written) == len(returned) else None

    def _operator(self, node: ast.expr) -> tuple[str, str] | None:
        """Operator and overload that `node` names."""
        path = self._path(node) or ""
        for start in (f"{_NAMESPACE}.", f"{_PACKAGE}."):
            name, _, overload = path.removeprefix(start).partition(".")
            if path.startswith(start) and (start != f"{_PACKAGE}." or name.startswith(_PREFIXES)):
                return name, overload
        return None

    def _path(self, node: ast.expr) -> str | None:
        """The dotted path that an expression of names and attributes stands for."""
        if isinstance(node, ast.Name):
            return self._scope.paths.get(node.id, node.id if node.id in (_PACKAGE, "torch") else None)
        if isinstance(node, ast.Attribute):
            before = self._path(node.value)
            return f"{before}.{node.attr}" if before else None
        return None


def _parameters(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None)


def _length(annotation: ast.expr | None) -> int | None:
    """How many items `tuple[float, float]` says; None for any other annotation."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=items)):
            return None if any(isinstance(item, ast.Constant) for item in items) else len(items)
    return None


def _constant(key: ast.expr) -> set[str] | None:
    return {key.value} if isinstance(key, ast.Constant) and isinstance(key.value, str) else None


def _joined(parts: list[set[str] | None]) -> set[str] | None:
    known = [part for part in parts if part is not None]
    return set().union(*known) if len(known) == len(parts) else None
