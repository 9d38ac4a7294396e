"""The errors of this reader: a broken file, a refused application, a wrong call."""

from __future__ import annotations


class BrokenError(Exception):
    """A file breaks a rule, or a base does not fit: `rule` is an id of section 14 of the specification."""

    def __init__(self, rule: str, expected: str, found: str, where: str, offset: int | None = None) -> None:
        self.rule = rule
        self.expected = expected
        self.found = found
        self.where = where
        self.offset = offset
        place = where if offset is None else f"{where}, byte {offset}"
        super().__init__(f"[{rule}] {place}: expected {expected}, found {found}")


class UsageError(Exception):
    """The caller asked for what the file does not have, or gave an argument that is none."""


def shown(text: str, limit: int = 80) -> str:
    """Text of a file made safe for one line of output: controls and bidirectional marks are escaped (section 16)."""
    short = text if len(text) <= limit else text[:limit] + "..."
    return ascii(short)
