"""Every error class of the library: one hierarchy, rooted in `TswError`.

    TswError
    ├── FormatError (ValueError)        a .tsw file breaks the specification
    │   ├── NotTswError                 it is no TSW file at all
    │   ├── TruncatedError              it ends early
    │   └── UnsupportedError            it needs a newer reader
    ├── PayloadError (ValueError)       encoded bytes break their codec's rules (readers turn it into FormatError)
    ├── BaseMismatchError (ValueError)  the base is not the one that the file was made from
    ├── CheckpointError (ValueError)    a checkpoint cannot be read, written or paired
    │   └── NonFiniteError              it holds NaN or infinite weights
    ├── OptionError (ValueError)        an option or argument makes no sense
    ├── UnknownNameError (KeyError)     there is no such tensor or task
    └── OutputError (OSError)           an output could not be written

Every message is one line that says what was expected, what was found, where, and what to do.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

_SEARCHED = 20_000  # names that are compared with one that is not there

__all__ = [
    "BaseMismatchError",
    "CheckpointError",
    "FormatError",
    "NonFiniteError",
    "NotTswError",
    "OptionError",
    "OutputError",
    "PayloadError",
    "TruncatedError",
    "TswError",
    "UnknownNameError",
    "UnsupportedError",
]


class TswError(Exception):
    """Base of all errors that this library raises on purpose."""


class FormatError(TswError, ValueError):
    """A file breaks a rule of `spec/tsw-1.md`.

    Attributes: `rule` (id, such as "TSW-104"), `file`, `offset` (bytes from the start of the file, or None), `field`,
    `expected` (what a record of the file or the specification says), `found` (what was met or computed), `advice`.
    """

    ADVICE = "get the file again from where it was published, or run 'tsw validate' for all findings"

    def __init__(
        self,
        *,
        rule: str,
        file: str,
        offset: int | None,
        field: str,
        expected: str,
        found: str,
        advice: str = ADVICE,
    ) -> None:
        self.rule = rule
        self.file = file
        self.offset = offset
        self.field = field
        self.expected = expected
        self.found = found
        self.advice = advice
        where = f" at byte {offset}" if offset is not None else ""
        super().__init__(f"{file}: {field}{where}: expected {expected}, found {found} [{rule}]; {advice}")


class NotTswError(FormatError):
    """The file is not a TSW file."""


class TruncatedError(FormatError):
    """The file ends before what it announces."""


class UnsupportedError(FormatError):
    """The file is of a version, or uses a feature, that this reader does not know."""


class PayloadError(TswError, ValueError):
    """Encoded bytes are not what their codec makes. Carries `rule`, `expected` and `found`, as FormatError does."""

    def __init__(self, *, rule: str, expected: str, found: str) -> None:
        self.rule = rule
        self.expected = expected
        self.found = found
        super().__init__(f"expected {expected}, found {found} [{rule}]")


class BaseMismatchError(TswError, ValueError):
    """The base given is not the base that the file was made from. `tensor` names the first tensor that differs; `rule`,
    `expected` and `found` say how."""

    def __init__(self, where: str, *, tensor: str, expected: str, found: str, fix: str, rule: str = "TSW-901") -> None:
        self.tensor = tensor
        self.rule = rule
        self.expected = expected
        self.found = found
        super().__init__(f"{where}: wrong base: tensor {tensor!r}: expected {expected}, found {found}; {fix} [{rule}]")


class CheckpointError(TswError, ValueError):
    """A checkpoint cannot be read or written, or two checkpoints do not pair."""


class NonFiniteError(CheckpointError):
    """A tensor has NaN or infinite elements. `tensor` is its name."""

    def __init__(self, message: str, *, tensor: str) -> None:
        self.tensor = tensor
        super().__init__(message)


class OptionError(TswError, ValueError):
    """An option or an argument has a value that makes no sense."""


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """At most three of the known names that are like a name."""
    # Takes tens of microseconds a name (measured once): hostile files have a million.
    return difflib.get_close_matches(name, list(itertools.islice(known, _SEARCHED)), n=3, cutoff=0.5)


def near_hint(name: str, known: Iterable[str]) -> str:
    """A remark on those names, to put behind what was found; empty where there are none."""
    near = near_names(name, known)
    return f" (near: {', '.join(repr(other) for other in near)})" if near else ""


class UnknownNameError(TswError, KeyError):
    """There is no tensor or task of that name; the message shows near names."""

    def __init__(self, what: str, name: str, known: Iterable[str], *, where: str) -> None:
        self.name = name
        names = list(known)
        near = near_names(name, names) or sorted(names)[:3]
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"there is no {what} in it"
        self.message = f"{where}: no {what} named {name!r} among {len(names)}; {hint}"
        super().__init__(self.message)

    def __str__(self) -> str:  # KeyError would show the repr
        return self.message


class OutputError(TswError, OSError):
    """An output could not be written. What was there before is as it was, unless the message says otherwise."""
