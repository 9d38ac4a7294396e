"""`validate`: a file against the specification and, where one is given, against its base."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import Any

from tswitch_format.checkpoint import borrow_checkpoint
from tswitch_format.container.verify import Finding, Level, ValidationReport, limited, validate_file
from tswitch_format.switch.base import base_problems
from tswitch_format.switch.file import SwitchFile


def validate(path: str | PathLike[str], level: Level = "full", *, base: Any = None) -> ValidationReport:
    """Check the file at `path`; with `base` (path, mapping or module) also whether that is the base it was made from.

    Sampled digests of the base are compared, at level "full" the SHA-256 of every tensor. A bad file gives findings, never
    an exception; OptionError is for an unknown level, CheckpointError for a base that cannot be read.
    """
    report = validate_file(path, level)
    if base is None or not report.ok:
        return report
    with borrow_checkpoint(base) as reader, SwitchFile(path, verify="off") as file:
        findings = (
            Finding(
                error.rule,
                "error",
                str(path),
                None,
                f"base tensor {error.tensor!r}",
                error.expected,
                error.found,
                str(error),
            )
            for error in base_problems(file.base, reader, digests=True, full=level == "full")
        )
        return replace(report, findings=limited(findings))
