"""What came of one file, the line that people read of a finding, and the exit code of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from tswitch_format import Finding, ValidationReport

# Rules that bytes break which changed since they were written. What else is wrong with such a file follows from that.
_DAMAGE = frozenset(
    f"TSW-{number}" for number in (100, 104, 105, 201, 202, 204, 205, 701, 702, 801, 802)
)  # fmt: skip
_DAMAGED = "do not use the file; get it again from where it was published"
_FAULTY = "the program that made the file is at fault; make it again, and report this to its publisher"
_BASE = "give the base that the file was made from; 'tsw info' says which"


class Status(StrEnum):
    """What came of a file."""

    VALID = "valid"
    INVALID = "invalid"
    NEWER = "newer"
    UNREADABLE = "unreadable"


_CODES = {Status.UNREADABLE: 3, Status.INVALID: 1, Status.NEWER: 4, Status.VALID: 0}  # the worst first
NO_FILES = 5


@dataclass(frozen=True)
class Result:
    """One file: `name` as the user knows it, the library's report, and how long it took."""

    name: str
    report: ValidationReport
    seconds: float = 0.0

    @classmethod
    def unread(cls, name: str, reason: str, level: str = "full") -> Result:
        """The result of a file that could not be checked. `reason` does not begin with the name."""
        return cls(name, ValidationReport(name, level, (), unreadable=reason))

    def without_base(self, problem: str) -> Result:
        """The same for a file that was to be compared with a base which could not be opened."""
        if self.report.unreadable is not None:
            return self
        return replace(self, report=replace(self.report, unreadable=f"its base could not be opened: {problem}"))

    @property
    def status(self) -> Status:
        """Which of the four it is."""
        if self.report.unreadable is not None:
            return Status.UNREADABLE
        if self.report.newer:
            return Status.NEWER
        return Status.VALID if self.report.ok else Status.INVALID

    @property
    def reason(self) -> str | None:
        """Why the file could not be read, without its name in front."""
        text = self.report.unreadable
        return None if text is None else text.removeprefix(f"{self.report.file}: ")

    def describe(self, finding: Finding) -> str:
        """A finding without its place: for formats that have the place on its own."""
        return f"{_what(finding)}; {self._advice(finding)}"

    def line(self, finding: Finding) -> str:
        """The whole line of a finding: where, what was expected, what was found, what to do."""
        where = self.name if finding.offset is None else f"{self.name}: byte {finding.offset}"
        return f"{where}: {_what(finding)} [{finding.rule}]; {self._advice(finding)}"

    def lines(self) -> Iterator[str]:
        """Every line that says something of the file."""
        for finding in self.report.findings:
            yield self.line(finding)
        if self.reason is not None:  # which may be after some findings
            yield f"{self.name}: {self.reason}"

    def _advice(self, finding: Finding) -> str:
        if finding.rule >= "TSW-900":
            return _BASE
        return finding.advice or (_DAMAGED if self._is_damaged else _FAULTY)

    @cached_property
    def _is_damaged(self) -> bool:
        return any(finding.rule in _DAMAGE for finding in self.report.findings)


def _what(finding: Finding) -> str:
    return f"{finding.field}: expected {finding.expected}, found {finding.found}"


@dataclass(slots=True)
class Tally:
    """What came of all files."""

    counts: Counter[Status] = field(default_factory=Counter)
    findings: int = 0
    seconds: float = 0.0

    def add(self, result: Result) -> None:
        """Count one."""
        self.counts[result.status] += 1
        self.findings += len(result.report.findings)
        self.seconds += result.seconds

    @property
    def files(self) -> int:
        """How many were counted."""
        return self.counts.total()

    @property
    def code(self) -> int:
        """The exit code: that of the worst, or that of no files at all."""
        return next((code for status, code in _CODES.items() if self.counts[status]), NO_FILES)
