"""Does a call fit an operator's schema, and does the schema still mean what the call was written against?

One release of torch_npu, the reference, is the one that the code was written and tested with. A call must fit the
schema of the release at hand; what the reference says of the same arguments shows whether something was renamed,
moved, or has another default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ascend_patch.engine.calls import Call
from ascend_patch.engine.schema import Argument, Schema

Change = Literal["unread", "missing", "argument", "renamed", "positional", "required", "type", "returns", "default"]
Overloads = Mapping[str, Schema]
"""Schema by full name, "npu_apply_adam_w.out"; of one operator or of many."""


@dataclass(frozen=True)
class Finding:
    """One way in which a call and the schema at hand do not fit.

    Attributes:
        operator: what is called, "npu_rms_norm".
        change: "unread": the call cannot be read from the source. "missing": there is no such operator.
            "argument": it has no such argument. "renamed": the argument has another name. "positional": too many,
            or others in that place. "required": an argument must be given and is not. "type": an argument takes
            another type. "returns": another number or type of results. "default": an argument that is not given
            has another default than in the reference.
        detail: what was found, for people.
    """

    operator: str
    change: Change
    detail: str

    @property
    def stops(self) -> bool:
        """Whether the call would fail or mean something else, as far as can be told."""
        return self.change not in ("default", "unread")

    def __str__(self) -> str:
        return f"{self.operator}: {self.detail}"


def examine(call: Call, found: Overloads, reference: Overloads) -> tuple[Finding, ...]:
    """What is wrong with `call` on the release whose schemas are `found`; () when all is well.

    An operator may have several overloads, and torch takes the first that fits; so the findings are those of the
    overload that has the fewest which stop.
    """
    candidates = overloads(call, found)
    if not candidates:
        return (_finding(call, "missing", "there is no such operator"),)
    results = [
        tuple(_problems(call, schema, _counterpart(call, name, reference))) for name, schema in candidates.items()
    ]
    return min(results, key=lambda findings: sum(finding.stops for finding in findings))


def overloads(call: Call, known: Overloads) -> dict[str, Schema]:
    """The overloads that torch chooses from: the one that is named, or all of the operator."""
    if call.overload:
        name = call.operator if call.overload == "default" else call.name
        return {name: known[name]} if name in known else {}
    return {name: schema for name, schema in known.items() if name.partition(".")[0] == call.operator}


def _counterpart(call: Call, name: str, reference: Overloads) -> Schema | None:
    """The overload in the reference that the call was written against, by preference the one of that name."""
    known = overloads(call, reference)
    fitting = {key: schema for key, schema in known.items() if not any(_misfits(call, schema, None))}
    return fitting.get(name) or next(iter(fitting.values()), None)


def _problems(call: Call, schema: Schema, reference: Schema | None) -> Iterator[Finding]:
    if call.unread:
        yield _finding(call, "unread", f"{call.unread} cannot be read from the source; name the arguments")
    if not call.called:  # handed on to be called elsewhere: whatever was possible must still be
        if reference is not None and _types(schema) != _types(reference):
            yield _finding(call, "type", f"it is {schema}, and was {reference}")
        return
    yield from _misfits(call, schema, reference)
    if reference is not None:
        yield from _changes(call, schema, reference)


def _misfits(call: Call, schema: Schema, reference: Schema | None) -> Iterator[Finding]:
    """Why torch would refuse the call."""
    if not call.called:
        return
    if call.positional > len(schema.positional):
        detail = f"{call.positional} positional arguments, and it takes {len(schema.positional)}"
        yield _finding(call, "positional", detail)
    by_position = {argument.name for argument in schema.positional[: call.positional]}
    for keyword in call.keywords:
        if schema.get(keyword) is None:
            new = _renamed(keyword, schema, reference)
            if new is None:
                yield _finding(call, "argument", f"it has no argument {keyword}")
            else:
                yield _finding(call, "renamed", f"the argument {keyword} is called {new} there")
        elif keyword in by_position:
            yield _finding(call, "positional", f"{keyword} is given by its place and by its name")
    for argument in schema.arguments:
        given = argument.name in by_position or argument.name in call.keywords
        if argument.default is None and not given and not call.unread:
            yield _finding(call, "required", f"the argument {argument} must be given")
    if call.values and call.values != len(schema.returns) and schema.returns[0].count("[") == 0:
        yield _finding(call, "returns", f"{call.values} results are expected, and it gives {schema.returned}")


def _changes(call: Call, schema: Schema, reference: Schema) -> Iterator[Finding]:
    """What torch would accept and would mean something else than in the reference."""
    for was, now in zip(reference.positional[: call.positional], schema.positional, strict=False):
        if was.name != now.name and schema.get(was.name) is not None:
            detail = f"{was.name} has another place; where it was given there is {now.name}"
            yield _finding(call, "positional", detail)
        elif not _takes(now, was):
            yield _finding(call, "type", f"the argument {now.name} is {now.type} and was {was.type}")
    by_position = {argument.name for argument in reference.positional[: call.positional]}
    for was in reference.arguments:
        same = schema.get(was.name)
        if same is None or was.name in by_position:
            continue
        if was.name in call.keywords and not _takes(same, was):
            yield _finding(call, "type", f"the argument {was.name} is {same.type} and was {was.type}")
        elif was.name not in call.keywords and was.default != same.default and same.default is not None:
            detail = f"the default of {was.name} is {same.default} and was {was.default}"
            yield _finding(call, "default", detail)
    if schema.returns != reference.returns:
        yield _finding(call, "returns", f"it gives {schema.returned} and gave {reference.returned}")


def _renamed(keyword: str, schema: Schema, reference: Schema | None) -> str | None:
    """The new name of an argument: of the same type, new, and the only such one or in the old one's place."""
    was = reference.get(keyword) if reference else None
    if was is None or reference is None:
        return None
    new = [now for now in schema.arguments if now.type == was.type and reference.get(now.name) is None]
    at = reference.arguments.index(was)
    if at < len(schema.arguments) and schema.arguments[at] in new:
        return schema.arguments[at].name
    return new[0].name if len(new) == 1 else None


def _takes(now: Argument, was: Argument) -> bool:
    """Whether an argument takes all that it took."""
    before, after = (argument.type.replace("SymInt", "int") for argument in (was, now))
    return after in (before, f"{before}?")


def _types(schema: Schema) -> tuple[object, ...]:
    return tuple((argument.name, argument.type) for argument in schema.arguments), schema.returns


def _finding(call: Call, change: Change, detail: str) -> Finding:
    return Finding(call.name, change, detail)
