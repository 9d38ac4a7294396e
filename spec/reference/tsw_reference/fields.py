"""Access to the maps of the index: each key is there, with a value of its type, or TSW-307 says which is not."""

from __future__ import annotations

from .errors import BrokenError, shown
from .msgpack import Value

_NAMES = {dict: "a map", list: "an array", str: "a str", bytes: "a bin", int: "an unsigned integer"}


class Fields:
    """A map of the index whose keys the specification lists."""

    def __init__(self, value: Value, where: str, required: set[str], optional: set[str], newer: bool) -> None:
        if not isinstance(value, dict):
            raise _wrong("a map", value, where)
        self.map = value
        self.where = where
        missing = sorted(required - value.keys())
        if missing:
            raise BrokenError("TSW-307", f"the key {missing[0]!r}", "none", where)
        unknown = sorted(value.keys() - required - optional)
        if unknown and not newer:
            expected = ", ".join(sorted(required | optional))
            raise BrokenError("TSW-307", f"only the keys {expected}", shown(unknown[0]), where)

    def _place(self, key: str) -> str:
        return f"{self.where}, {key}"

    def text(self, key: str) -> str:
        """A str."""
        return _text(self.map[key], self._place(key))

    def optional_text(self, key: str) -> str | None:
        """A str, or None where the key is missing."""
        return self.text(key) if key in self.map else None

    def number(self, key: str) -> int:
        """An unsigned integer."""
        value = self.map[key]
        if not isinstance(value, int):
            raise _wrong("an unsigned integer", value, self._place(key))
        return value

    def binary(self, key: str) -> bytes:
        """A bin."""
        value = self.map[key]
        if not isinstance(value, bytes):
            raise _wrong("a bin", value, self._place(key))
        return value

    def table(self, key: str, record: int) -> bytes:
        """A table of records of so many bytes; TSW-310 where its length is no multiple of that."""
        table = self.binary(key)
        if len(table) % record:
            raise BrokenError("TSW-310", f"a multiple of {record} bytes", str(len(table)), self._place(key))
        return table

    def array(self, key: str) -> list[Value]:
        """An array."""
        value = self.map[key]
        if not isinstance(value, list):
            raise _wrong("an array", value, self._place(key))
        return value

    def array_of_texts(self, key: str) -> list[str]:
        """An array of str."""
        return [_text(value, self._place(key)) for value in self.array(key)]

    def texts(self, key: str) -> dict[str, str]:
        """A map of str to str."""
        return {name: _text(value, self._place(key)) for name, value in self._entries(key).items()}

    def numbers(self, key: str) -> dict[str, int]:
        """A map of str to unsigned integer."""
        result = {}
        for name, value in self._entries(key).items():
            if not isinstance(value, int):
                raise _wrong("an unsigned integer", value, f"{self._place(key)}, {shown(name)}")
            result[name] = value
        return result

    def _entries(self, key: str) -> dict[str, Value]:
        value = self.map[key]
        if not isinstance(value, dict):
            raise _wrong("a map", value, self._place(key))
        return value


def _text(value: Value, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong("a str", value, where)
    return value


def _wrong(expected: str, value: Value, where: str) -> BrokenError:
    return BrokenError("TSW-307", expected, _NAMES[type(value)], where)
