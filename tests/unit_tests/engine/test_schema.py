"""Schemas of operators: read, printed, compared."""

import pytest

from ascend_patch.engine.errors import ContractError
from ascend_patch.engine.schema import Argument, Schema

TEXT = '(Tensor(a!) input, int[2] size, *, float scale=1.0, str layout="BSH", int? k=None) -> (Tensor, Tensor)'


def test_what_is_read_is_printed():
    schema = Schema.parse(f"npu::npu_x.out{TEXT}")
    assert str(schema) == TEXT
    assert Schema.parse(str(schema)) == schema
    assert schema.arguments[0] == Argument("input", "Tensor(a!)")
    assert [argument.name for argument in schema.positional] == ["input", "size"]
    assert schema.get("layout") == Argument("layout", "str", '"BSH"', keyword_only=True)
    assert schema.get("absent") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("float eps=1.", "float eps=1.0"),
        ("float eps=1", "float eps=1.0"),
        ("float eps=1e-5", "float eps=1e-05"),
        ("str mode='half'", 'str mode="half"'),
        ("int reduction=Mean", "int reduction=1"),
        ("int[2] size=[1,2]", "int[2] size=[1, 2]"),
    ],
)
def test_defaults_are_equal_however_they_are_written(one, other):
    assert Schema.parse(f"({one}) -> Tensor") == Schema.parse(f"({other}) -> Tensor")


def test_an_integer_is_no_float():
    assert Schema.parse("(int k=1) -> Tensor") != Schema.parse("(float k=1) -> Tensor")


def test_no_arguments_and_named_returns():
    assert Schema.parse("() -> int") == Schema((), ("int",))
    assert Schema.parse("(Tensor x) -> (Tensor y, Tensor(a!) z)").returns == ("Tensor", "Tensor(a!)")


def test_a_comma_or_bracket_in_quotes_separates_nothing():
    schema = Schema.parse('(str a=",", str b="(", int c=1) -> Tensor')
    assert [argument.default for argument in schema.arguments] == ['","', '"("', "1"]


@pytest.mark.parametrize("text", ["npu_x", "(Tensor x)", "(Tensor x -> Tensor", "(x) -> Tensor"])
def test_what_is_no_schema(text):
    with pytest.raises(ContractError, match="is not an"):
        Schema.parse(text)


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("(Tensor x, int k=1) -> Tensor", []),
        ("(Tensor x) -> Tensor", ["without `int k=1`"]),
        ("(Tensor x, int k=1, *, bool b=False) -> Tensor", ["with `bool b=False`"]),
        ("(Tensor x, int k=2) -> Tensor", ["`int k=2` for `int k=1`"]),
        ("(Tensor x, *, int k=1) -> Tensor", ["`int k=1` for `int k=1` by name only"]),
        ("(int k=1, Tensor x) -> Tensor", ["in another order: k, x"]),
        ("(Tensor x, int k=1) -> (Tensor, Tensor)", ["gives (Tensor, Tensor) for Tensor"]),
    ],
)
def test_differences(text, clauses):
    found = list(Schema.parse(text).differences(Schema.parse("(Tensor x, int k=1) -> Tensor")))
    assert found == clauses
