"""Section 5.1: canonical MessagePack, the subset of the index. Every rule is checked where the bytes are read.

Values become `dict`, `list`, `str`, `bytes` and `int`. `offset` in errors counts from the document's first byte; the
caller adds where the document lies.
"""

from __future__ import annotations

from typing import TypeAlias

from .errors import BrokenError

Value: TypeAlias = "dict[str, Value] | list[Value] | str | bytes | int"

MOST_MEMBERS = 4096
MOST_LEVELS = 8
MOST_NODES = 1 << 18
MOST_TEXT = 1 << 22

# First byte: (name of the type, bytes of the number that follows, smallest number that needs this form).
_NUMBERS = {
    0xCC: ("unsigned integer", 1, 128),
    0xCD: ("unsigned integer", 2, 1 << 8),
    0xCE: ("unsigned integer", 4, 1 << 16),
    0xCF: ("unsigned integer", 8, 1 << 32),
}
_LENGTHS = {
    0xC4: ("bin", 1, 0),
    0xC5: ("bin", 2, 1 << 8),
    0xC6: ("bin", 4, 1 << 16),
    0xD9: ("str", 1, 32),
    0xDA: ("str", 2, 1 << 8),
    0xDB: ("str", 4, 1 << 16),
    0xDC: ("array", 2, 16),
    0xDD: ("array", 4, 1 << 16),
    0xDE: ("map", 2, 16),
    0xDF: ("map", 4, 1 << 16),
}
_FOREIGN = {
    0xC0: "nil",
    0xC2: "false",
    0xC3: "true",
    0xC7: "an extension",
    0xC8: "an extension",
    0xC9: "an extension",
    0xCA: "a float",
    0xCB: "a float",
    **dict.fromkeys(range(0xD0, 0xD4), "a signed integer"),
    **dict.fromkeys(range(0xD4, 0xD9), "an extension"),
}


def decode(document: bytes) -> Value:
    """The value of a canonical document; raises BrokenError with a rule of 3xx."""
    reader = _Reader(document)
    value = reader.value(1)
    if reader.position != len(document):
        rest = len(document) - reader.position
        raise BrokenError("TSW-306", "the end of the index document", f"{rest} more bytes", "index", reader.position)
    return value


class _Reader:
    def __init__(self, document: bytes) -> None:
        self.document = document
        self.position = 0
        self.nodes = 0
        self.texts = 0

    def take(self, length: int, what: str) -> bytes:
        start = self.position
        rest = len(self.document) - start
        if length > rest:
            raise BrokenError(
                "TSW-302", f"{length} bytes of {what}", f"the document's end after {rest}", "index", start
            )
        self.position += length
        return self.document[start : self.position]

    def head(self) -> tuple[str, int]:
        """The type of the next value, and its number, length or count of members."""
        at = self.position
        first = self.take(1, "a value")[0]
        if first <= 0x7F:
            return "unsigned integer", first
        if first <= 0x8F:
            return "map", first & 0x0F
        if first <= 0x9F:
            return "array", first & 0x0F
        if first <= 0xBF:
            return "str", first & 0x1F
        if first in _NUMBERS or first in _LENGTHS:
            name, size, least = _NUMBERS.get(first) or _LENGTHS[first]
            number = int.from_bytes(self.take(size, f"the length or number of a {name}"), "big")
            if number < least:
                raise BrokenError("TSW-302", "the shortest form", f"{name} {number} with byte {first:02X}", "index", at)
            return name, number
        if first == 0xC1:
            raise BrokenError("TSW-302", "a well-formed document", "the byte C1, which no type has", "index", at)
        found = _FOREIGN.get(first, "a negative integer")
        raise BrokenError("TSW-301", "map, array, str, bin or unsigned integer", found, "index", at)

    def value(self, level: int) -> Value:
        at = self.position
        name, number = self.head()
        if name == "unsigned integer":
            return number
        if name == "str":
            return self.text(number)
        if name == "bin":
            return self.take(number, "a bin")
        if number > MOST_MEMBERS:
            raise BrokenError("TSW-305", f"at most {MOST_MEMBERS} members", f"{name} of {number}", "index", at)
        if level > MOST_LEVELS:
            raise BrokenError("TSW-305", f"at most {MOST_LEVELS} levels", f"{name} at level {level}", "index", at)
        self.nodes += 1 + number
        if self.nodes > MOST_NODES:
            raise BrokenError("TSW-305", f"at most {MOST_NODES} maps, arrays and members", "more", "index", at)
        if name == "array":
            return [self.value(level + 1) for _ in range(number)]
        return self.members(number, level)

    def text(self, length: int) -> str:
        at = self.position
        encoded = self.take(length, "a str")
        self.texts += length
        if self.texts > MOST_TEXT:
            raise BrokenError("TSW-305", f"at most {MOST_TEXT} bytes of str", "more", "index", at)
        try:
            return encoded.decode("utf-8")
        except UnicodeDecodeError as error:
            offset = at + error.start
            raise BrokenError("TSW-304", "UTF-8", f"bytes that are not ({error.reason})", "index", offset) from None

    def members(self, count: int, level: int) -> dict[str, Value]:
        result: dict[str, Value] = {}
        before: bytes | None = None
        for _ in range(count):
            at = self.position
            name, length = self.head()
            if name != "str":
                raise BrokenError("TSW-303", "a str as key", f"{name}", "index", at)
            key = self.text(length)
            encoded = key.encode("utf-8")
            if before is not None and encoded <= before:
                raise BrokenError("TSW-303", "keys that ascend strictly", f"{key!a} after a greater", "index", at)
            before = encoded
            result[key] = self.value(level + 1)
        return result
