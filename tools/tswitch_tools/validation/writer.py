"""What every report writer is: three steps, each giving the text that comes next."""

from __future__ import annotations

from typing import Protocol

from tswitch_tools.text import printable
from tswitch_tools.validation.result import Result, Tally


class Writer(Protocol):
    """Makes a report of results, one after the other."""

    def begin(self) -> str:
        """What stands before the first result."""
        ...

    def add(self, result: Result) -> str:
        """What one result adds."""
        ...

    def end(self, tally: Tally) -> str:
        """What stands after the last."""
        ...


def unicode(text: str) -> str:
    r"""Text that every parser takes: bytes of a file name that are no UTF-8, which Python keeps as lone surrogates, come as
    `\xff`.
    """
    return text if text.isascii() else "".join(map(_without_surrogates, text))


def plain(text: str) -> str:
    """Text of one line, in which what would move the cursor or break the line comes as escapes."""
    return printable(unicode(text))


def _without_surrogates(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return ascii(char)[1:-1] if "\ud800" <= char <= "\udfff" else char
