"""Both readers of a file, and what it means that they agree.

`compare` shows a file to the library and to spec/reference, and raises DisagreementError where one accepts what the other
refuses or where they find something else in it. Section 9.5 permits one difference: a zstd library decodes some frames that
RFC 8878 calls corrupted. It is taken only for files of which the caller says that frames in them were changed, and counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tsw_reference import BrokenError, describe, read

import tswitch_format as tsw
from fuzz.memory import Slot
from fuzz.modules import load
from tswitch_format.container.verify import ValidationReport

SLOT = Slot("differential")


class DisagreementError(AssertionError):
    """The readers disagree."""


library = load("spec/vectors/decoders/library.py")


@dataclass
class Tally:
    """What came out of many comparisons."""

    outcomes: Counter[str] = field(default_factory=Counter)
    permitted: Counter[str] = field(default_factory=Counter)
    """Files that only the library decodes (section 9.5), by what was changed in them."""
    first_rules: int = 0
    """Files that both refuse where the reference's rule is among those of the library."""

    @property
    def total(self) -> int:
        """Files compared."""
        return self.outcomes.total()

    def add(self, other: Tally) -> None:
        """Put another tally in."""
        self.outcomes += other.outcomes
        self.permitted += other.permitted
        self.first_rules += other.first_rules

    def __str__(self) -> str:
        both, refused = self.outcomes["accepted"], self.outcomes["refused"]
        return (
            f"{self.total:,} files: {both:,} accepted by both with equal content, {refused:,} refused by both "
            f"({self.first_rules:,} of them for a rule that both name), {self.permitted.total():,} permitted differences "
            f"{dict(self.permitted)}"
        )


def compare(data: bytes, tally: Tally | None = None, *, frames: str = "") -> bool:
    """Show a file to both readers; whether they accept it. `frames`: what was changed in zstd frames of it, if anything."""
    tally = Tally() if tally is None else tally
    report = tsw.validate(SLOT.put(data))
    if report.unreadable is not None:
        raise DisagreementError(f"the library cannot read it: {report.unreadable}")
    try:
        found = describe(read(data))
    except BrokenError as error:
        _refused(report, error, tally, frames)
        return False
    if not report.ok:
        raise DisagreementError(f"only the reference accepts it; the library: {report.findings[0].message}")
    ours = library.decode(SLOT.path)
    if ours != found:
        raise DisagreementError(f"they find other content at {_difference(ours, found)}")
    tally.outcomes["accepted"] += 1
    return True


def _refused(report: ValidationReport, error: BrokenError, tally: Tally, frames: str) -> None:
    if not report.ok:
        tally.outcomes["refused"] += 1
        tally.first_rules += error.rule in {finding.rule for finding in report.findings}
    elif frames and error.rule == "TSW-707":
        tally.outcomes["permitted"] += 1
        tally.permitted[frames] += 1
    else:
        raise DisagreementError(f"only the library accepts it; the reference: {error}")


def _difference(ours: Any, theirs: Any, path: str = "") -> str:
    """Where two documents differ first."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return next(
            (_difference(ours[key], theirs[key], f"{path}.{key}") for key in ours if ours[key] != theirs[key]), ""
        )
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        places = [at for at, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]
        return _difference(ours[places[0]], theirs[places[0]], f"{path}[{places[0]}]") if places else ""
    return f"{path}: library {str(ours)[:200]}, reference {str(theirs)[:200]}"
