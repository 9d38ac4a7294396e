"""A report of everything that is wrong with a file; a bad file gives findings, never an exception.

Levels, each with all before it: "structure" reads prologue, trailer and index; "checksums" reads every byte and compares
CRC32C and padding; "full" decodes everything and recomputes the entries' digests and the content id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tswitch_format import _layout as lay
from tswitch_format.container.digest import content_id
from tswitch_format.container.index import SHARED
from tswitch_format.container.reader import Container, Entry
from tswitch_format.container.report import Report, StopReading
from tswitch_format.errors import FormatError, OptionError, TswError, UnsupportedError

Level = Literal["structure", "checksums", "full"]
LEVELS = ("structure", "checksums", "full")


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule: `offset` in bytes or None; `message` is the whole line for people, `advice` what to do if more is known
    of that than that the file is bad."""

    rule: str
    severity: str
    file: str
    offset: int | None
    field: str
    expected: str
    found: str
    message: str
    advice: str | None = None

    @classmethod
    def of(cls, error: FormatError) -> Finding:
        """The finding that an error stands for."""
        advice = None if error.advice == FormatError.ADVICE else error.advice
        what = (error.file, error.offset, error.field, error.expected, error.found)
        return cls(error.rule, "error", *what, str(error).removesuffix(f"; {FormatError.ADVICE}"), advice)


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What `validate` found: of a column of a table 100 findings, and the number of the others, of one file 10,000 at most.

    `unreadable`: why the file could not be read to its end, or None. `newer`: it needs a newer reader.
    """

    file: str
    level: str
    findings: tuple[Finding, ...]
    unreadable: str | None = None
    newer: bool = False

    @property
    def ok(self) -> bool:
        """Whether the file was read and keeps every rule."""
        return not self.findings and self.unreadable is None


def validate_file(path: str | PathLike[str], level: Level = "full") -> ValidationReport:
    """Check a file against the specification. Raises OptionError for an unknown level, nothing else for any content."""
    if level not in LEVELS:
        raise OptionError(f"level: expected {', '.join(LEVELS)}, found {level!r}")
    report = Report(str(path), collect=True)
    unreadable = None
    newer = False
    try:
        container = Container(Path(path), backend="pread", report=report)
        try:
            if level != "structure":
                check_content(container, report, decode=level == "full")
        finally:
            container.close()
    except StopReading:
        pass  # why is in the report
    except FormatError as error:
        # What a damaged file seems to need is not what it needs.
        newer = isinstance(error, UnsupportedError) and not report.findings
        report.findings.append(error)
    except (TswError, OSError) as error:
        unreadable = str(error)
    except MemoryError:
        unreadable = f"{path}: there is not enough memory to check it; give more, or check at level 'checksums'"
    return ValidationReport(str(path), level, limited(map(Finding.of, report.findings)), unreadable, newer)


def limited(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """As many findings as a report has; if those are all that were looked for, the last one says so."""
    listed = tuple(islice(findings, Report.MOST))
    if len(listed) < Report.MOST:
        return listed
    found = f"{listed[-1].found} (the check ended at {Report.MOST} findings)"
    return (*listed[:-1], replace(listed[-1], found=found))


def raise_first(container: Container) -> None:
    """Check the content of an open file in full. Raises FormatError for the first broken rule."""
    check_content(container, container.report, decode=True)


def check_content(container: Container, report: Report, *, decode: bool) -> None:
    """Check padding and checksums of all segments, and with `decode` what they decode to, the digests and the content id."""
    end = _check_decoded(container, report) if decode else _check_checksums(container, report)
    _check_padding(container, end, container.frame.index_offset, report)
    recorded = container.index.content_id
    improper = any(found.rule == "TSW-501" for found in report.findings)  # names that content ids have no place for
    if decode and recorded is not None and not improper:
        _check_content_id(container, recorded, report)


def _tables(container: Container) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Numbers of the tables, as they lie in the file, and where their segments begin and end."""
    for number in (SHARED, *range(len(container.index.tasks))):
        segments = container.index.tables[number].segments
        starts = segments["offset"].astype(np.int64)
        yield number, starts, starts + segments["length"]


def _check_decoded(container: Container, report: Report) -> int:
    """Returns where the last segment ends, as does `_check_checksums`."""
    end = lay.FRAME
    for number, starts, ends in _tables(container):
        befores = np.concatenate([[end], ends])[:-1]
        for at in np.flatnonzero(befores < starts).tolist():
            _check_padding(container, int(befores[at]), int(starts[at]), report)
        end = int(ends[-1]) if ends.size else end
        for entry in container.shared_arrays() if number == SHARED else container.entries(number):
            _check_entry(entry, report)
    return end


def _check_checksums(container: Container, report: Report) -> int:
    # In this thread alone: a segment takes microseconds, and after each threads would wait for each other.
    end = lay.FRAME
    for number, starts, ends in _tables(container):
        for span in container.spans(number):
            before, start = int(ends[span.start - 1]) if span.start else end, int(starts[span.start])
            if before < start:
                _check_padding(container, before, start, report)
            for error in _check_span(container, number, span):
                report.take(error)
        end = int(ends[-1]) if ends.size else end
    return end


def _check_span(container: Container, number: int, span: range) -> list[FormatError]:
    """What is wrong with the segments of a span, one by one where they cannot be read at once."""
    try:
        return container.check_span(number, span)
    except FormatError as error:
        if len(span) == 1:
            return [error]
        return [error for part in span for error in _check_span(container, number, range(part, part + 1))]


def _check_padding(container: Container, start: int, end: int, report: Report) -> None:
    for error in container.check_padding(start, end):
        report.take(error)


def _check_entry(entry: Entry, report: Report) -> None:
    """Decode each segment of an entry once, in the order in which its digest takes what they hold."""
    digest = entry.digest()
    whole = True
    for part in entry.content():
        try:
            digest.update(part())
        except FormatError as error:
            report.take(error)
            whole = False
    if whole and entry.sha256 is not None and digest.digest() != entry.sha256:
        report.take(entry.other_content(digest.digest()))


def _check_content_id(container: Container, recorded: bytes, report: Report) -> None:
    computed = content_id(container.index)
    if computed is None:
        report.finding("TSW-803", "content_id", "none, since digests are absent", recorded.hex())
    elif computed != recorded:
        report.finding("TSW-802", "content_id", recorded.hex(), computed.hex())
