"""Names of tensors and tasks: what makes one proper, and the names of a tensor list, of which a file may hold a million.

Names stay the bytes that they are in the index and become str when they are asked for: as a list of str, hostile ones (a
single character above U+FFFF makes Python keep four bytes for each) take four times the index.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format.container.report import Place, Report

# Categories Cc, Zl and Zp, and bidirectional controls. One pattern: a look-up a character took seconds for a hostile index.
# The line feed is one of them too, but separates names where many are checked at once.
_FORBIDDEN = "\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_IN_LINES = re.compile(f"[{_FORBIDDEN}]")
_IN_NAME = re.compile(f"[\n{_FORBIDDEN}]")
_BLOCK = 1024  # names that are checked at once


class Order(NamedTuple):
    """Numbers of the names that are the same as the one before, and of those that come before it."""

    equal: NDArray[np.int64]
    wrong: NDArray[np.int64]


@dataclass(slots=True)
class Budget:
    """What may still come of names that are not ASCII: normalising such a name takes up to 0.3 us a character."""

    report: Report
    left: int = lay.MAX_WIDE_NAMES

    def take(self, names: Iterable[str], field: str) -> list[str]:
        """Those of `names` that are not ASCII. Raises FormatError where there are too many."""
        found = [name for name in names if not name.isascii()]
        self.left -= sum(len(name.encode()) for name in found)
        if self.left < 0:
            raise self.report.fatal(
                "TSW-403", field, f"at most {lay.MAX_WIDE_NAMES} bytes of names that are not ASCII, in all", "more"
            )
        return found


class Names(Sequence[str]):
    """The names of a tensor list, by number."""

    def __init__(self, data: memoryview, lengths: NDArray[np.uint16]) -> None:
        self._data = data
        self._ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[at] for at in range(len(self))[number]]
        at = range(len(self))[number]
        return str(self.raw(at, at + 1), "utf-8")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _BLOCK):
            yield from self.lines(first, min(first + _BLOCK, len(self))).split("\n")

    def raw(self, first: int, last: int) -> memoryview:
        """The bytes of names `first` to `last`."""
        return self._data[int(self._ends[first - 1]) if first else 0 : int(self._ends[last - 1])]

    def lines(self, first: int, last: int) -> str:
        """Names `first` to `last`, a line each. Raises UnicodeDecodeError, also where one ends within a character."""
        data = np.frombuffer(self.raw(first, last), np.uint8)
        starts = self._ends[first : last - 1] - (self._ends[first - 1] if first else 0)
        return np.insert(data, starts, ord("\n")).tobytes().decode()


def cut_names(
    data: memoryview, lengths: NDArray[np.uint16], field: str, place: Place, budget: Budget
) -> tuple[Names, Order]:
    """Cut and check the names of a tensor list. Also: which do not come after the one before."""
    report = budget.report
    total = int(lengths.sum(dtype=np.int64))
    if total != len(data):
        raise report.fatal("TSW-401", f"{field}.names", f"{total} bytes", str(len(data)), offset=place.of(data))
    names = Names(data, lengths)
    fits = (lengths >= 1) & (lengths <= lay.MAX_NAME)
    listed = 0
    equal: list[int] = []
    wrong: list[int] = []
    previous = ""
    for first in range(0, len(names), _BLOCK):
        last = min(first + _BLOCK, len(names))
        lines = _proper_lines(names, first, last, field, budget) if fits[first:last].all() else None
        if lines is None:
            listed += _report_improper(names, first, last, report.LISTED - listed, field, place, report)
            if listed == report.LISTED:
                break
            continue
        # Code points order str as their UTF-8 bytes do.
        for number, (before, name) in enumerate(itertools.pairwise([previous, *lines]), first):
            if before >= name:
                (equal if before == name else wrong).append(number)
        previous = lines[-1]
    return names, Order(np.array(equal, np.int64), np.array(wrong, np.int64))


def _proper_lines(names: Names, first: int, last: int, field: str, budget: Budget) -> list[str] | None:
    """The names of a block; None if one of them is not proper."""
    # As one text, not name by name: there may be a million. Nothing composes with a line feed, so the text is in
    # normal form if and only if every line is, and a line feed within a name makes a line too many.
    try:
        text = names.lines(first, last)
    except UnicodeDecodeError:
        return None
    lines = text.split("\n")
    if len(lines) != last - first:
        return None
    if text.isascii():
        return lines if "".join(lines).isprintable() else None
    proper = "".join(line for line in lines if line.isascii()).isprintable()
    text = "\n".join(budget.take(lines, f"{field}.names"))
    return lines if proper and unicodedata.is_normalized("NFC", text) and not _IN_LINES.search(text) else None


def _report_improper(names: Names, first: int, last: int, most: int, field: str, place: Place, report: Report) -> int:
    """Report up to `most` improper names of a block; how many."""
    listed = 0
    for number in range(first, last):
        raw = names.raw(number, number + 1)
        try:
            name = str(raw, "utf-8")
            wrong = name_problem(name)
            shown = repr(name[:80])
        except UnicodeDecodeError as error:
            wrong, shown = f"no UTF-8 ({error.reason})", bytes(raw[:80]).hex(" ")
        if wrong:
            where = f"{field}.names[{number}]"
            report.blocking("TSW-402", where, "a proper name", f"{wrong}: {shown}", offset=place.of(raw))
            listed += 1
            if listed == most:
                break
    return listed


def name_problem(name: str) -> str | None:
    """What is wrong with a name of a tensor or task (section 5.3), or None."""
    if name.isascii():
        if not 1 <= len(name) <= lay.MAX_NAME:
            return f"{len(name)} bytes instead of 1 to {lay.MAX_NAME}"
        return None if name.isprintable() else "a control character"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "a lone surrogate"
    if length > lay.MAX_NAME:
        return f"{length} bytes instead of 1 to {lay.MAX_NAME}"
    if not unicodedata.is_normalized("NFC", name):
        return "not in normal form NFC"
    if _IN_NAME.search(name):
        return "a control, separator or bidi character"
    return None
