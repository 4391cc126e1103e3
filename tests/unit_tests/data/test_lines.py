"""Lines in blocks, and documents of several lines."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascend_patch.data.lines import TxtSplit, join_documents, read_lines

content = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b" ", b"= T =\n"]), max_size=40).map(b"".join)


def documents(text: bytes, split: TxtSplit, block: int = 4, longest: int = 1000) -> list[tuple[int, bytes | None]]:
    return list(join_documents(read_lines(io.BytesIO(text), block, longest), split, longest))


@settings(deadline=None, max_examples=50)
@given(text=content, block=st.integers(1, 20))
def test_blocks_are_whole_lines_and_all_of_them(text, block):
    blocks = list(read_lines(io.BytesIO(text), block, 1000))
    assert b"".join(lines for _, lines in blocks if lines) == text
    assert all(lines and lines.endswith(b"\n") for _, lines in blocks[:-1])
    for index, (number, _) in enumerate(blocks):
        assert number == 1 + sum(lines.count(b"\n") for _, lines in blocks[:index] if lines)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(0, 60), max_size=12), block=st.integers(1, 20), ends=st.booleans())
def test_a_line_that_is_too_long_is_passed_over(lengths, block, ends):
    lines = [b"x" * length for length in lengths]
    text = b"\n".join(lines) + (b"\n" if ends else b"")
    longest = 25
    found: list[tuple[int, bytes]] = []
    too_long = []
    for number, block_lines in read_lines(io.BytesIO(text), block, longest):
        if block_lines is None:
            too_long.append(number)
        else:
            found += enumerate(block_lines.splitlines(), number)
    assert too_long == [number for number, length in enumerate(lengths, 1) if length > longest]
    expected = [(number, line) for number, line in enumerate(text.splitlines(), 1) if len(line) <= longest]
    assert found == expected


def test_a_line_that_is_too_long_is_not_held():
    class Endless:
        left = 1000

        def read(self, size: int, /) -> bytes:
            self.left -= 1
            return b"x" * size if self.left > 0 else b"\nend" if self.left == 0 else b""

    assert list(read_lines(Endless(), 1 << 16, 1 << 16)) == [(1, None), (2, b"end")]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (TxtSplit.BLANK_LINE, [(3, b"one\r\ntwo"), (7, b" three"), (10, b"four")]),
        (TxtSplit.FILE, [(3, b"one\r\ntwo\n\n \n three\n\n\nfour")]),
    ],
)
@pytest.mark.parametrize("block", [1, 5, 1000])
def test_documents_between_blank_lines(split, expected, block):
    assert documents(b"\n \none\r\ntwo\n\n \n three\n\n\nfour\n", split, block) == expected


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_documents_with_titles(block):
    text = b"before\n = One = \n\n text = 1 \n = = Part = = \n more\n = Two = \n\n= Three =\nend\n"
    assert documents(text, TxtSplit.TITLE, block) == [
        (1, b"before"),
        (2, b" = One = \n\n text = 1 \n = = Part = = \n more"),
        (7, b" = Two = "),
        (9, b"= Three =\nend"),
    ]


@pytest.mark.parametrize("split", [TxtSplit.BLANK_LINE, TxtSplit.FILE, TxtSplit.TITLE])
def test_blank_files_hold_no_documents(split):
    assert documents(b"\n  \n\r\n", split) == []
    assert documents(b"", split) == []


def test_documents_that_are_too_long():
    text = b"a\nb\n\n" + b"c" * 50 + b"\nd\n\ne\n\n" + b"f\n" * 30 + b"\ng"
    assert documents(text, TxtSplit.BLANK_LINE, longest=20) == [
        (1, b"a\nb"),
        (4, None),
        (7, b"e"),
        (9, None),
        (40, b"g"),
    ]
