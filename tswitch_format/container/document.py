"""Canonical MessagePack, spec section 5.1: encoding, and decoding that accepts nothing else.

Decoding is our own, since it has to be told what a MessagePack library hides: which form a length had, in which order keys
came, where in the bytes that was. It reads each byte once and copies no bin (tables of up to 64 MiB stay views), and its time
is bounded by the number of members that is allowed ("most members" in `python -m fuzz.attack_cost`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgpack

from tswitch_format._layout import MAX_DEPTH, MAX_MEMBERS, MAX_TEXT, MAX_VALUES

Value: TypeAlias = "dict[str, Value] | list[Value] | str | bytes | memoryview | int"
Fail: TypeAlias = Callable[[str, str, str, int], Exception]  # (rule, expected, found, position) -> error to raise

# First byte of the forms with a length or number after them -> type, bytes of the length, smallest that needs so many.
_UINT, _STR, _BIN, _ARRAY, _MAP = "unsigned integer", "str", "bin", "array", "map"
_LONG = {
    0xCC: (_UINT, 1, 0x80),
    0xCD: (_UINT, 2, 0x100),
    0xCE: (_UINT, 4, 0x10000),
    0xCF: (_UINT, 8, 0x100000000),
    0xD9: (_STR, 1, 32),
    0xDA: (_STR, 2, 0x100),
    0xDB: (_STR, 4, 0x10000),
    0xC4: (_BIN, 1, 0),
    0xC5: (_BIN, 2, 0x100),
    0xC6: (_BIN, 4, 0x10000),
    0xDC: (_ARRAY, 2, 16),
    0xDD: (_ARRAY, 4, 0x10000),
    0xDE: (_MAP, 2, 16),
    0xDF: (_MAP, 4, 0x10000),
}
_FOREIGN = {0xC0: "nil", 0xC2: "a boolean", 0xC3: "a boolean", 0xCA: "a float", 0xCB: "a float"}
_FOREIGN |= dict.fromkeys([*range(0xC7, 0xCA), *range(0xD4, 0xD9)], "an extension type")
_FOREIGN |= dict.fromkeys([*range(0xD0, 0xD4), *range(0xE0, 0x100)], "a signed integer")


def encode(value: Value) -> bytes:
    """The canonical bytes of a document."""
    packed: bytes = msgpack.packb(_sorted(value), use_bin_type=True)
    return packed


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=str.encode)}
    if isinstance(value, list):
        return [_sorted(member) for member in value]
    return value


def decode(data: bytes | memoryview, fail: Fail) -> Value:
    """The document of canonical bytes; its bins are views of `data`. Raises what `fail` makes of a broken rule.

    The limits keep a hostile document from asking for more memory than a small multiple of its size.
    """
    decoder = _Decoder(memoryview(data), fail)
    value = decoder.value(1)
    if decoder.at < len(data):
        raise fail("TSW-306", "one document", f"{len(data) - decoder.at} bytes after it", decoder.at)
    return value


class _Decoder:
    def __init__(self, data: memoryview, fail: Fail) -> None:
        self._data = data
        self._fail = fail
        self._left = MAX_VALUES
        self._text_left = MAX_TEXT  # one character above U+FFFF makes Python keep four bytes for each of a str
        self.at = 0

    def value(self, depth: int) -> Value:
        begin = self.at
        if begin >= len(self._data):
            raise self._ends(begin)
        first = self._data[begin]
        self.at = begin + 1
        if first < 0x80:
            return first
        if 0xA0 <= first < 0xC0:
            return self._text(first - 0xA0)
        if first < 0x90:
            return self._map(first - 0x80, depth, begin)
        if first < 0xA0:
            return self._array(first - 0x90, depth, begin)
        if first not in _LONG:
            if first in _FOREIGN:
                raise self._fail(
                    "TSW-301", "map, array, str, bin or unsigned integer", f"{_FOREIGN[first]} (0x{first:02X})", begin
                )
            raise self._fail("TSW-302", "a type of MessagePack", f"0x{first:02X}", begin)
        kind, size, least = _LONG[first]
        number = int.from_bytes(self._take(size), "big")
        if number < least:
            raise self._fail("TSW-302", "the shortest form", f"{kind} {number} in {size + 1} bytes", begin)
        match kind:
            case "unsigned integer":
                return number
            case "str":
                return self._text(number)
            case "bin":
                return self._take(number)
            case "array":
                return self._array(number, depth, begin)
        return self._map(number, depth, begin)

    def _take(self, length: int) -> memoryview:
        begin = self.at
        self.at = begin + length
        if self.at > len(self._data):
            raise self._ends(begin)
        return self._data[begin : self.at]

    def _ends(self, position: int) -> Exception:
        return self._fail("TSW-302", "a whole document", f"its end after {len(self._data)} bytes", position)

    def _text(self, length: int) -> str:
        begin = self.at
        data = self._take(length)
        self._text_left -= length
        if self._text_left < 0:
            raise self._fail("TSW-305", f"at most {MAX_TEXT} bytes of str in all", "more", begin)
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise self._fail("TSW-304", "UTF-8", error.reason, begin + error.start) from error

    def _open(self, members: int, depth: int, begin: int) -> None:
        """Check the limits before a map or array is read."""
        if members > MAX_MEMBERS:
            raise self._fail("TSW-305", f"at most {MAX_MEMBERS} members", str(members), begin)
        if depth > MAX_DEPTH:
            raise self._fail("TSW-305", f"at most {MAX_DEPTH} levels", "deeper nesting", begin)
        self._left -= members + 1
        if self._left < 0:
            raise self._fail("TSW-305", f"at most {MAX_VALUES} members in all", "more", begin)

    def _array(self, members: int, depth: int, begin: int) -> list[Value]:
        self._open(members, depth, begin)
        return [self.value(depth + 1) for _ in range(members)]

    def _map(self, members: int, depth: int, begin: int) -> dict[str, Value]:
        self._open(members, depth, begin)
        made: dict[str, Value] = {}
        before: str | None = None
        for _ in range(members):
            position = self.at
            key = self.value(depth + 1)
            if not isinstance(key, str):
                raise self._fail("TSW-303", "keys that are str", type_name(key), position)
            if before is not None and key <= before:  # the order of code points is that of UTF-8 bytes
                raise self._fail(
                    "TSW-303", "keys that ascend strictly", f"{key[:80]!r} after {before[:80]!r}", position
                )
            made[key] = self.value(depth + 1)
            before = key
        return made


def type_name(value: Value) -> str:
    """The MessagePack type of a decoded value."""
    names = {dict: _MAP, list: _ARRAY, str: _STR, memoryview: _BIN, int: _UINT}
    return names[type(value)]
