"""Where a failed check goes: a reader raises the first, the validator collects all that it can.

Three weights of failure, so that a check says only how far it reaches:

    fatal, newer    nothing that follows makes sense: the caller raises it
    blocking        its own table can be checked on, but nothing that builds on it: `gate` ends the reading
    finding         everything else can still be checked
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format.errors import FormatError, UnsupportedError


class Failure(NamedTuple):
    """One place that breaks a rule."""

    field: str
    found: str
    offset: int


class Place:
    """Where in the file something of the index lies: the byte, or where the index begins if that is compressed."""

    def __init__(self, document: bytes | memoryview, offset: int, *, compressed: bool) -> None:
        self._offset = offset
        self._begin = None if compressed else _address(np.frombuffer(document, np.uint8))

    def at(self, position: int) -> int:
        """Of a byte of the decoded index."""
        return self._offset + (position if self._begin is not None else 0)

    def of(self, piece: memoryview | NDArray[Any], row: int = 0, field: str | None = None) -> int:
        """Of a view of the decoded index, or of a field of a row of such a table."""
        array = piece if isinstance(piece, np.ndarray) else np.frombuffer(piece, np.uint8)
        if self._begin is None or not array.size:
            return self._offset
        within = lay.span(array.dtype, field)[0] if field else 0
        return self._offset + _address(array) - self._begin + row * array.itemsize + within


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class StopReading(Exception):  # noqa: N818 - it carries no failure: those are in the report
    """Ends the reading of a file whose blocking failures are all collected."""


@dataclass(slots=True)
class Report:
    """Makes and takes the failures of one file. `offset`: that of what is being checked, where a check gives none itself."""

    file: str
    collect: bool = False
    offset: int | None = None
    findings: list[FormatError] = field(default_factory=list)
    _blocked: bool = False

    LISTED: ClassVar = 100  # failures of one check; more of them are counted
    MOST: ClassVar = 10_000  # failures of a file; so many end the reading, since each takes 1.5 kB

    def fatal(self, rule: str, field: str, expected: str, found: str, *, offset: int | None = None) -> FormatError:
        """The error for a failure that ends the reading."""
        return FormatError(
            rule=rule, file=self.file, offset=self._at(offset), field=field, expected=expected, found=found
        )

    def newer(self, rule: str, field: str, expected: str, found: str, *, offset: int | None = None) -> UnsupportedError:
        """The error for something that a newer reader may know."""
        return UnsupportedError(
            rule=rule,
            file=self.file,
            offset=self._at(offset),
            field=field,
            expected=expected,
            found=found,
            advice="update tswitch-format to read this file",
        )

    def finding(self, rule: str, field: str, expected: str, found: str, *, offset: int | None = None) -> None:
        """Take a failure."""
        self.take(self.fatal(rule, field, expected, found, offset=offset))

    def blocking(self, rule: str, field: str, expected: str, found: str, *, offset: int | None = None) -> None:
        """Take a failure after which the next `gate` ends the reading."""
        self.finding(rule, field, expected, found, offset=offset)
        self._blocked = True

    def each(
        self,
        bad: NDArray[np.bool_],
        rule: str,
        expected: str,
        describe: Callable[[int], Failure],
        *,
        newer: bool = False,
        blocking: bool = False,
    ) -> None:
        """Take a failure for each row of a table that is marked, as `describe` says of its number."""
        if not np.count_nonzero(bad):  # a third of what `any` takes, and opening a file comes here some 60 times
            return
        places = np.flatnonzero(bad)
        take = self.blocking if blocking else self.finding
        for left, at in enumerate(places[: self.LISTED].tolist(), 1 - places.size):
            field, found, offset = describe(at)
            if newer:
                raise self.newer(rule, field, expected, found, offset=offset)
            if left + places.size == self.LISTED and left < 0:
                found += f" (and {-left} more such rows)"
            take(rule, field, expected, found, offset=offset)

    def take(self, error: FormatError) -> None:
        """Take an error that is made already."""
        if not self.collect:
            raise error
        self.findings.append(error)
        if len(self.findings) >= self.MOST:
            raise StopReading

    def gate(self) -> None:
        """Raises StopReading if a blocking failure was taken."""
        if self._blocked:
            raise StopReading

    def _at(self, offset: int | None) -> int | None:
        return self.offset if offset is None else offset
