"""JSON values of a stream come one by one, wherever the stream is cut into blocks."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_patch.data.errors import DataError
from ascend_patch.data.json_values import read_values

LONG = 1 << 20
values = st.recursive(
    st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)


def read(content: bytes, block: int = 5, longest: int = LONG) -> list[tuple[int, str]]:
    return list(read_values(io.BytesIO(content), "my.json", block, longest))


@settings(deadline=None, max_examples=50)
@given(
    values=st.lists(values, max_size=6),
    indent=st.sampled_from([None, 0, 2]),
    ascii=st.booleans(),
    bom=st.booleans(),
    block=st.integers(1, 40),
)
def test_elements_of_an_array(values, indent, ascii, bom, block):
    content = json.dumps(values, indent=indent, ensure_ascii=ascii).encode("utf-8-sig" if bom else "utf-8")
    assert [json.loads(text) for _, text in read(content, block)] == values


@settings(deadline=None, max_examples=50)
@given(objects=st.lists(st.dictionaries(st.text(), values, max_size=3), max_size=5), block=st.integers(1, 40))
def test_one_object_after_the_other(objects, block):
    content = "\n \r\n".join(json.dumps(value, indent=1) for value in objects).encode()
    assert [json.loads(text) for _, text in read(content, block)] == objects


def test_lines_are_counted():
    content = b'\n[\n  {"a": 1},\n\n  {"b":\n 2}, {"c": "x\\ny"}\n]\n'
    assert read(content) == [(3, '{"a": 1}'), (5, '{"b":\n 2}'), (6, '{"c": "x\\ny"}')]


def test_a_number_cut_between_blocks():
    assert read(b"123456 78", block=2) == [(1, "123456"), (1, "78")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n {"b"', r"my.json, line 2: not JSON \(Expecting ':' delimiter\). The rest of the file"),
        (b'[\n{"a": "never ends', r"line 2: not JSON \(Unterminated string"),
        (b'[{"a": 1}\n {"b": 1}]', r"line 2: expected ',', found '\{'"),
        (b'[{"a": 1},', "line 1: not JSON"),
        (b'[{"a": 1}', "line 1: expected ',', found the end of the file"),
        (b"[", "line 1: not JSON"),
        (b'[{"a": 1}]\n\n x', "line 3: there is text after the end of the array"),
        (b"hello", r"line 1: not JSON \(Expecting value\)"),
        (b'["a", "\xff"]', r"line 1: not UTF-8 soon after this line \(invalid start byte\)"),
        (b'["a", "\xe4\xba', "not UTF-8 soon after this line"),
        (b"[" * 100_000, "line 1: JSON that cannot be read .*recursion"),
        (b"1" * 5000, "line 1: JSON that cannot be read .*4300 digits"),
    ],
)
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_what_is_no_json(content, message, block):
    with pytest.raises(DataError, match=message):
        read(content, block)


def test_an_error_does_not_read_all_of_a_long_file():
    class Endless:
        asked = 0

        def read(self, size: int, /) -> bytes:
            self.asked += size
            return b'{"a": nonsense} '.ljust(size)[:size]

    stream = Endless()
    with pytest.raises(DataError, match="line 1: not JSON"):
        list(read_values(stream, "my.json", 100, LONG))
    assert stream.asked <= 200


def test_a_value_that_is_too_long():
    with pytest.raises(DataError, match="line 1: a value longer than 1 MiB. Split it .* --max-record-mib"):
        read(b'["' + b"a" * (2 << 20) + b'"]', block=1000, longest=1 << 20)
