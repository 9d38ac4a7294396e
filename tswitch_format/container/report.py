"""Where a failed check goes: a reader raises the first, the validator collects all that it can."""

from __future__ import annotations

from dataclasses import dataclass, field

from tswitch_format.errors import FormatError, UnsupportedError


@dataclass(slots=True)
class Report:
    """Makes and takes the failures of one file.

    `fatal` makes an error for the caller to raise, where nothing can be read on; `finding` is for failures after which the
    rest can still be checked: it raises unless `collect`.
    """

    file: str
    collect: bool = False
    offset: int | None = None  # of what is being checked
    findings: list[FormatError] = field(default_factory=list)

    def fatal(self, rule: str, field: str, expected: str, found: str, *, offset: int | None = None) -> FormatError:
        """The error for a failure that ends the reading."""
        return FormatError(
            rule=rule, file=self.file, offset=self.at(offset), field=field, expected=expected, found=found
        )

    def newer(self, rule: str, field: str, expected: str, found: str, *, offset: int | None = None) -> UnsupportedError:
        """The error for something that a newer reader may know."""
        return UnsupportedError(
            rule=rule,
            file=self.file,
            offset=self.at(offset),
            field=field,
            expected=expected,
            found=found,
            advice="update tswitch-format to read this file",
        )

    def finding(self, rule: str, field: str, expected: str, found: str, *, offset: int | None = None) -> None:
        """Take a failure."""
        self.take(self.fatal(rule, field, expected, found, offset=offset))

    def take(self, error: FormatError) -> None:
        """Take an error that is made already."""
        if not self.collect:
            raise error
        self.findings.append(error)

    def at(self, offset: int | None) -> int | None:
        """`offset`, or else that of what is being checked."""
        return self.offset if offset is None else offset
