"""A report of everything that is wrong with a file; a bad file gives findings, never an exception.

Levels, each with all before it: "structure" reads prologue, trailer and index; "checksums" reads every byte and compares
CRC32C and padding; "full" decodes everything and recomputes the entries' digests and the content id.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from tswitch_format import _layout as lay
from tswitch_format.container.digest import content_id
from tswitch_format.container.reader import Container, Entry
from tswitch_format.container.report import Report
from tswitch_format.errors import FormatError, OptionError, TswError, UnsupportedError

Level = Literal["structure", "checksums", "full"]
LEVELS = ("structure", "checksums", "full")


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule: `offset` in bytes or None; `message` is the whole line for people."""

    rule: str
    severity: str
    file: str
    offset: int | None
    field: str
    expected: str
    found: str
    message: str

    @classmethod
    def of(cls, error: FormatError) -> Finding:
        """The finding that an error stands for."""
        return cls(error.rule, "error", error.file, error.offset, error.field, error.expected, error.found, str(error))


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What `validate` found. `unreadable`: why the file could not be read at all, or None. `newer`: it needs a newer reader."""

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
    newer = False
    try:
        container = Container(Path(path), backend="pread", report=report)
        try:
            if level != "structure":
                check_content(container, report, decode=level == "full")
        finally:
            container.close()
    except FormatError as error:
        newer = isinstance(error, UnsupportedError)
        report.findings.append(error)
    except (TswError, OSError) as error:
        return ValidationReport(str(path), level, (), unreadable=str(error))
    except MemoryError:
        reason = f"{path}: there is not enough memory to check it; give more, or check at level 'checksums'"
        return ValidationReport(str(path), level, (), unreadable=reason)
    return ValidationReport(str(path), level, tuple(map(Finding.of, report.findings)), newer=newer)


def raise_first(container: Container) -> None:
    """Check the content of an open file in full. Raises FormatError for the first broken rule."""
    check_content(container, container.report, decode=True)


def check_content(container: Container, report: Report, *, decode: bool) -> None:
    """Check padding and checksums of all segments, and with `decode` what they decode to, the digests and the content id."""
    end = lay.FRAME
    for number, task in enumerate(container.index.tasks):
        for segment, record in enumerate(task.segments):
            start = int(record["offset"])
            _check_padding(container, end, start, report)
            end = start + int(record["length"])
            try:
                container.segment(number, segment)
            except FormatError as error:
                report.take(error)
        if decode:
            for entry in container.entries(number):
                _check_entry(entry, number, report)
    _check_padding(container, end, container.frame.index_offset, report)
    recorded = container.index.content_id
    improper = any(found.rule == "TSW-501" for found in report.findings)  # names that content ids have no place for
    if decode and recorded is not None and not improper:
        _check_content_id(container, recorded, report)


def _check_padding(container: Container, start: int, end: int, report: Report) -> None:
    if end > start:
        padding = bytes(container.read_padding(start, end))
        if padding.strip(b"\0"):
            at = start + len(padding) - len(padding.lstrip(b"\0"))
            report.finding("TSW-702", "padding", "zero", f"0x{padding[at - start]:02x}", offset=at)


def _check_entry(entry: Entry, task: int, report: Report) -> None:
    try:
        found = entry.content_digest()
    except FormatError as error:
        if error.rule != "TSW-701":  # reported already, once for each segment
            report.take(error)
        return
    if entry.sha256 is not None and found != entry.sha256:
        report.take(entry.other_content(found))


def _check_content_id(container: Container, recorded: bytes, report: Report) -> None:
    computed = content_id(container.index)
    if computed is None:
        report.finding("TSW-803", "content_id", "none, since digests are absent", recorded.hex())
    elif computed != recorded:
        report.finding("TSW-802", "content_id", computed.hex(), recorded.hex())
