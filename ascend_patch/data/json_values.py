"""JSON values of a stream, one after the other, without holding all of it."""

import codecs
import json
import re
from collections.abc import Iterator

from ascend_patch.data.errors import DataError
from ascend_patch.data.lines import Readable

_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_PART = 16  # characters, so close to the end of what has been read, that a value may be cut there


def read_values(content: Readable, name: str, block_bytes: int, longest: int) -> Iterator[tuple[int, str]]:
    """The elements of the array that ``content`` is, or else the values in it: (number of its line, source text).

    Args:
        name: of the file, for messages.
        longest: characters of a value.

    Raises:
        DataError: from some place on it is not JSON, not UTF-8, or a value is too long.
    """
    text = _Text(content, name, block_bytes, longest)
    if text.next() != "[":
        while text.next():
            yield text.value()
        return
    text.skip("[")
    if text.next() != "]":
        yield text.value()
        while text.next() != "]":
            text.skip(",")
            yield text.value()
    text.skip("]")
    if text.next():
        raise text.error("there is text after the end of the array")


class _Text:
    """What has been read and not given out, and where in the file that is."""

    def __init__(self, content: Readable, name: str, block_bytes: int, longest: int) -> None:
        self._content = content
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._name = name
        self._block_bytes = block_bytes
        self._longest = longest
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._start = 0  # what is before it has been given out
        self._line = 1  # there

    def next(self) -> str:
        """The first character that is no white space, "" at the end."""
        while True:
            self._take(_SPACE.match(self._text, self._start).end())  # type: ignore[union-attr]
            if self._start < len(self._text) or not self._more():
                return self._text[self._start : self._start + 1]

    def skip(self, expected: str) -> None:
        """Go past a character."""
        if (found := self.next()) != expected:
            raise self.error(f"expected {expected!r}, found {repr(found) if found else 'the end of the file'}")
        self._take(self._start + 1)

    def value(self) -> tuple[int, str]:
        """The value that begins here, and its line."""
        self.next()
        while True:
            try:
                end = self._scan(self._text, self._start)[1]
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_PART
                if not cut or not self._more():
                    self._take(max(self._start, min(error.pos, len(self._text))))
                    raise self.error(f"not JSON ({error.msg})") from error
            except (ValueError, RecursionError) as error:
                raise self.error(f"JSON that cannot be read ({error})") from error
            else:
                # A number near the end of what has been read may go on.
                if end < len(self._text) - _LONGEST_PART or not self._more():
                    return self._line, self._take(end)
            if len(self._text) - self._start > self._longest:
                limit = f"{self._longest >> 20} MiB"
                raise self.error(f"a value longer than {limit}. Split it into documents, or raise --max-record-mib")

    def error(self, what: str) -> DataError:
        """An error at this place."""
        return DataError(f"{self._name}, line {self._line}: {what}. The rest of the file cannot be read.")

    def _take(self, end: int) -> str:
        taken = self._text[self._start : end]
        self._start = end
        self._line += taken.count("\n")
        return taken

    def _more(self) -> bool:
        """Read on, at least as much again as is there, so that a long value is not scanned too often."""
        rest = self._text[self._start :]
        block = self._content.read(max(self._block_bytes, len(rest)))
        try:
            more = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 soon after this line ({error.reason})") from error
        if block:
            self._text, self._start = rest + more, 0
        return bool(block)
