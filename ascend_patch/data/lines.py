"""Lines of a stream, in blocks; and documents of several lines."""

import io
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Protocol

Numbered = tuple[int, bytes | None]
"""Text and the number of its first line, from 1; None stands for text that is longer than is allowed."""


class Readable(Protocol):
    """What is read from."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""


_TITLE = re.compile(rb"\s*= (?!=).*(?<!=) =\s*")


class TxtSplit(StrEnum):
    """What is one document of a .txt file."""

    LINE = "line"
    BLANK_LINE = "blank-line"  # what stands between blank lines
    FILE = "file"
    TITLE = "title"  # from a line "= Title =" up to the next, as in WikiText


def read_lines(content: Readable, block_bytes: int, longest: int) -> Iterator[Numbered]:
    """Blocks of whole lines, of some ``block_bytes`` each.

    A line of more than ``longest`` bytes (not less than ``block_bytes``) is passed over without holding it in memory.
    """
    number, begun, length = 1, list[bytes](), 0  # of the line that has begun and not ended
    while block := content.read(block_bytes):
        end = block.rfind(b"\n") + 1
        if not end:
            length += len(block)
            begun = [*begun, block] if length <= longest else []
            continue
        start = 0
        if length + block.find(b"\n") > longest:
            yield number, None
            number, begun, start = number + 1, [], block.find(b"\n") + 1
        if lines := b"".join([*begun, block[start:end]]):
            yield number, lines
            number += lines.count(b"\n")
        begun, length = [block[end:]], len(block) - end
    if length:
        yield number, b"".join(begun) if length <= longest else None


def join_documents(blocks: Iterable[Numbered], split: TxtSplit, longest: int) -> Iterator[Numbered]:
    """Documents of several lines, without the line ends around them; blank lines begin none."""
    first, lines, length = 0, list[bytes](), 0
    for number, line in _single(blocks):
        if length and line is not None and _ends_before(line, split):
            yield first, b"".join(lines).strip(b"\r\n") if length <= longest else None
            lines, length = [], 0
        if line is not None and not length and line.isspace():
            continue
        first = first if length else number
        length += longest + 1 if line is None else len(line)
        if line is None or length > longest:
            lines = []
        else:
            lines.append(line)
    if length:
        yield first, b"".join(lines).strip(b"\r\n") if length <= longest else None


def _single(blocks: Iterable[Numbered]) -> Iterator[Numbered]:
    for first, block in blocks:
        if block is None:
            yield first, None
        else:
            yield from enumerate(io.BytesIO(block), first)


def _ends_before(line: bytes, split: TxtSplit) -> bool:
    """Whether a document ends where ``line`` begins."""
    if split is TxtSplit.BLANK_LINE:
        return line.isspace()
    return split is TxtSplit.TITLE and _TITLE.fullmatch(line) is not None
