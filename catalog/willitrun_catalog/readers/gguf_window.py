"""A cursor over a GGUF header that holds one window of it at a time, and never more."""

from __future__ import annotations

import re
import struct
from functools import lru_cache

from willitrun_catalog.errors import FileFormatError
from willitrun_catalog.readers.source import ByteSource

MAX_HEADER_BYTES = 128 << 20
"""Ten times the largest header in use (about 13 MB: a 200,000-token vocabulary with its merges)."""
MAX_TEXTS = 1 << 21
"""Strings in all arrays together; four times what the largest vocabulary in use (262,144 tokens) needs with merges."""
MAX_NAME_BYTES = 255
"""ggml itself stops at 63 (`GGML_MAX_NAME`)."""
MAX_TEXT_BYTES = 1 << 16
MAX_KEPT_TEXT_BYTES = 1 << 22
MAX_KEPT_NUMBERS = 1 << 18
FIRST_WINDOW_BYTES = 1 << 16
WINDOW_BYTES = 1 << 20
_U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")
_LONGEST_SHORT_TEXT = 63
_RUN = 512
_SAMPLE = 2048


class Window:
    """A cursor over a source that holds one window of it at a time."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._end = min(source.size, MAX_HEADER_BYTES)
        self._base = 0
        self._at = 0
        self.texts_left = MAX_TEXTS
        self.text_room = MAX_KEPT_TEXT_BYTES
        self.number_room = MAX_KEPT_NUMBERS
        self._data = source.read_at(0, min(FIRST_WINDOW_BYTES, self._end))

    def tell(self) -> int:
        """Offset in the file."""
        return self._base + self._at

    def error(self, reason: str, field: str, offset: int) -> FileFormatError:
        """Build the error for something wrong at an offset."""
        return FileFormatError(self._source.name, reason, field=field, offset=offset)

    def take(self, length: int, field: str) -> bytes:
        """Read `length` bytes and step over them."""
        if self._at + length > len(self._data):
            self._move(self.tell(), length, field)
        piece = self._data[self._at : self._at + length]
        self._at += length
        return piece

    def u32(self, field: str) -> int:
        """Read a 32-bit number."""
        return int(_U32.unpack(self.take(4, field))[0])

    def u64(self, field: str) -> int:
        """Read a 64-bit number."""
        return int(_U64.unpack(self.take(8, field))[0])

    def count(self, field: str, least_bytes: int, limit: int) -> int:
        """Read a count of things that take at least `least_bytes` each, and refuse what cannot be there."""
        at = self.tell()
        count = self.u64(field)
        if count > limit or count * least_bytes > self._end - self.tell():
            raise self.error(f"{count} cannot be right in a file of {self._source.size} bytes", field, at)
        return count

    def name(self, field: str) -> str:
        """Read a short string that must be whole."""
        at = self.tell()
        length = self.u64(field)
        if length > min(MAX_NAME_BYTES, self._end - self.tell()):
            raise self.error(f"a name of {length} bytes cannot be right", field, at)
        return self.take(length, field).decode("utf-8", "replace")

    def text(self, field: str) -> str:
        """Read a string value; of a long one only the beginning is kept."""
        length = self._length_of_text(field)
        kept = self.take(min(length, MAX_TEXT_BYTES, self.text_room), field)
        self.text_room -= len(kept)
        self.skip(length - len(kept), field)
        return kept.decode("utf-8", "replace")

    def skip(self, length: int, field: str) -> None:
        """Step over bytes without reading those outside the window."""
        if self._at + length <= len(self._data):
            self._at += length
        else:
            self._move(self.tell() + length, 0, field)

    def skip_texts(self, count: int, field: str) -> None:
        """Step over strings. Runs of short ones are matched by one regular expression, not one by one."""
        lengths = [0] * (_LONGEST_SHORT_TEXT + 1)
        sampled = self._step_texts(min(count, _SAMPLE), lengths)
        count -= sampled
        runs = _short_texts(_usual_first(lengths)) if count >= _SAMPLE else None
        while count:
            run = runs.match(self._data, self._at) if runs is not None and count >= _RUN else None
            if run is not None:
                self._at = run.end()
                count -= _RUN
                continue
            stepped = self._step_texts(min(count, _RUN), lengths)
            if stepped == 0:
                self.skip(self._length_of_text(field), field)
                stepped = 1
            count -= stepped

    def _step_texts(self, most: int, lengths: list[int]) -> int:
        """Step over strings that lie wholly in the window, and count the short lengths; returns how many."""
        data, at, end = self._data, self._at, len(self._data)
        length_at = _U64.unpack_from
        stepped = 0
        while stepped < most and at + 8 <= end:
            length = length_at(data, at)[0]
            if at + 8 + length > end:
                break
            at += 8 + length
            if length < len(lengths):
                lengths[length] += 1
            stepped += 1
        self._at = at
        return stepped

    def _length_of_text(self, field: str) -> int:
        at = self.tell()
        length = self.u64(field)
        if length > self._end - self.tell():
            raise self.error(f"a string of {length} bytes cannot be right", field, at)
        return length

    def _move(self, offset: int, length: int, field: str) -> None:
        """Put the window at `offset` with at least `length` bytes in it."""
        if offset + length > self._end:
            end = "the file ends" if self._end == self._source.size else "the header is too long"
            raise self.error(f"{end} here", field, self.tell())
        wanted = min(max(WINDOW_BYTES, length), self._end - offset)
        self._data = self._source.read_at(offset, wanted)
        self._base, self._at = offset, 0
        if len(self._data) < length:
            raise self.error("the file ends here", field, offset + len(self._data))


def _usual_first(lengths: list[int]) -> tuple[int, ...]:
    """Order the lengths of short strings so that the expression tries the frequent ones first."""
    return tuple(sorted(range(len(lengths)), key=lambda length: (-lengths[length], abs(length - 6))))


@lru_cache(maxsize=16)
def _short_texts(order: tuple[int, ...]) -> re.Pattern[bytes]:
    """Match `_RUN` length-prefixed short strings. Possessive: nothing is ever tried twice."""
    one = b"|".join(rb"\x%02x\x00{7}.{%d}" % (length, length) for length in order)
    return re.compile(rb"(?s:(?:" + one + rb"){%d}+)" % _RUN)
