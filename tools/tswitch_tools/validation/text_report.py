"""Lines for people and grep: the file in front, then where, what and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from tswitch_tools.validation.result import Result, Status, Tally
from tswitch_tools.validation.writer import plain


@dataclass(frozen=True, slots=True)
class TextReport:
    """One line for a finding, one for a valid file unless `quiet`, and a sum of several files."""

    quiet: bool = False

    def begin(self) -> str:
        """Nothing."""
        return ""

    def add(self, result: Result) -> str:
        """The lines of a file."""
        if result.status is Status.VALID:
            return "" if self.quiet else f"{plain(result.name)}: valid\n"
        return "".join(f"{plain(line)}\n" for line in result.lines())

    def end(self, tally: Tally) -> str:
        """The sum."""
        if tally.files < 2 or (self.quiet and tally.code == 0):
            return ""
        counts = ", ".join(f"{tally.counts[status]} {status}" for status in Status if tally.counts[status])
        return f"{tally.files} files: {counts}\n"
