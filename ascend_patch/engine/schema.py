"""The schema of a PyTorch operator, read from its text: arguments with types and defaults, and what it returns.

The text is what torch prints and what torch_npu's own files hold: `(Tensor input, *, int dim=-1) -> Tensor`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from ascend_patch.engine.errors import ContractError

_CLOSES = {"(": ")", "[": "]"}
# Defaults that torchgen's files write as a name, and torch prints as a number.
_CONSTANTS = {"Mean": "1", "Sum": "2"}


@dataclass(frozen=True)
class Argument:
    """One argument.

    Attributes:
        name, type: as written, `Tensor?`, `int[]`.
        default: its canonical text, so that `1.` and `1.0` are equal; None when the argument must be given.
        keyword_only: whether it stands behind the `*`.
    """

    name: str
    type: str
    default: str | None = None
    keyword_only: bool = False

    def __str__(self) -> str:
        return f"{self.type} {self.name}" + ("" if self.default is None else f"={self.default}")


@dataclass(frozen=True)
class Schema:
    """One overload of an operator.

    Attributes:
        arguments: in order.
        returns: the types of what it returns; names are left out.
    """

    arguments: tuple[Argument, ...]
    returns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Schema:
        """Read `text`; what stands before the first parenthesis, the name, is left out.

        Raises:
            ContractError: it is no schema.
        """
        try:
            end = _closing(text, text.index("("))
            arrow = text.index("->", end)
        except ValueError:
            raise ContractError(f"{text!r} is not an operator's schema: `(type name, …) -> type`.") from None
        arguments, keyword_only = [], False
        for part in _split(text[text.index("(") + 1 : end]):
            if part == "*":
                keyword_only = True
            else:
                arguments.append(_argument(part, keyword_only))
        returned = text[arrow + 2 :].strip()
        parts = _split(returned[1:-1]) if returned.startswith("(") else [returned]
        return cls(tuple(arguments), tuple(part.partition(" ")[0] for part in parts))

    @property
    def positional(self) -> tuple[Argument, ...]:
        """The arguments that can be given without their name."""
        return tuple(argument for argument in self.arguments if not argument.keyword_only)

    def get(self, name: str) -> Argument | None:
        """The argument of that name."""
        return next((argument for argument in self.arguments if argument.name == name), None)

    def differences(self, other: Schema) -> Iterator[str]:
        """How this schema differs from `other`, one clause for each argument and for what is returned."""
        for argument in other.arguments:
            if self.get(argument.name) is None:
                yield f"without `{argument}`"
        for argument in self.arguments:
            was = other.get(argument.name)
            if was is None:
                yield f"with `{argument}`"
            elif was != argument:
                moved = argument.keyword_only and not was.keyword_only
                yield f"`{argument}` for `{was}`" + (" by name only" if moved else "")
        places = {argument.name for argument in self.positional} & {argument.name for argument in other.positional}
        order = [argument.name for argument in self.positional if argument.name in places]
        if order != [argument.name for argument in other.positional if argument.name in places]:
            yield f"in another order: {', '.join(order)}"
        if self.returns != other.returns:
            yield f"gives {self.returned} for {other.returned}"

    @property
    def returned(self) -> str:
        """What it returns, as a schema says it."""
        return self.returns[0] if len(self.returns) == 1 else f"({', '.join(self.returns)})"

    def __str__(self) -> str:
        parts = [str(argument) for argument in self.positional]
        keywords = [str(argument) for argument in self.arguments if argument.keyword_only]
        parts += ["*", *keywords] if keywords else []
        return f"({', '.join(parts)}) -> {self.returned}"


def _argument(text: str, keyword_only: bool) -> Argument:
    declared, equals, default = text.partition("=")
    type_, _, name = declared.strip().rpartition(" ")
    if not type_:
        raise ContractError(f"{text!r} is not an argument of a schema: `type name` or `type name=default`.")
    return Argument(name, type_.strip(), _canonical(default.strip(), type_) if equals else None, keyword_only)


def _canonical(default: str, type_: str) -> str:
    default = _CONSTANTS.get(default, default)
    try:
        value = ast.literal_eval(default)
    except (ValueError, SyntaxError):  # a name: contiguous_format
        return default
    if type_.startswith("float") and isinstance(value, int):
        value = float(value)
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    return next(at for at, depth in _depths(text, start) if depth == 0)


def _split(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket."""
    commas = [at for at, depth in _depths(text, 0) if depth == 0 and text[at] == ","]
    bounds = zip([-1, *commas], [*commas, len(text)], strict=True)
    return [part for part in (text[start + 1 : end].strip() for start, end in bounds) if part]


def _depths(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Position and bracket depth, behind that character, of each character from `start` on that is not quoted."""
    expected: list[str] = []
    quote = ""
    for at, character in enumerate(text[start:], start):
        if quote:
            quote = "" if character == quote else quote
            continue
        if character in "'\"":
            quote = character
        elif character in _CLOSES:
            expected.append(_CLOSES[character])
        elif expected and character == expected[-1]:
            expected.pop()
        yield at, len(expected)
    if expected:
        raise ValueError("a bracket is not closed")
