"""`tsw validate`: a report and an exit code for pipelines."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import tswitch_format as tsw
from tswitch_format.container.verify import Level
from tswitch_tools.commands import options
from tswitch_tools.commands.failure import Failure
from tswitch_tools.progress import progress_bar
from tswitch_tools.text import printable

_VALID, _INVALID, _UNREADABLE, _NEWER, _NO_FILES = 0, 1, 3, 4, 5
_WORST_FIRST = (_UNREADABLE, _INVALID, _NEWER, _VALID)
_STDIN = Path("-")


class _NoFiles(Failure):
    exit_code = _NO_FILES


class _Unreadable(Failure):
    exit_code = _UNREADABLE


@click.command()
@click.argument("files", nargs=-1, required=True, type=options.PATH, metavar="FILE...")
@click.option(
    "--level",
    type=click.Choice(["structure", "checksums", "full"]),
    default="full",
    show_default=True,
    help="Index only; also the checksums of all bytes; also decode everything and check digests.",
)
@click.option("--base", type=options.PATH, metavar="BASE", help="Check also that this is the base of the files.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the report.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress, and no lines for valid files.")
@click.pass_context
def validate(
    ctx: click.Context, *, files: tuple[Path, ...], level: Level, base: Path | None, form: str, quiet: bool
) -> None:
    """Check files against the specification.

    FILE may be a folder, which stands for all .tsw files below it, or - for standard input.

    \b
    Exit codes:
      0  all files are valid
      1  a file is invalid
      2  wrong usage
      3  a file, or the base, could not be read
      4  a file needs a newer reader
      5  there are no files
    With several files the worst wins, in the order 3, 1, 4, 0.

    \b
    Examples:
      tsw validate math.tsw
      tsw validate experts/ --level checksums --format json > report.json
      curl URL | tsw validate -
    """
    paths = _expand(files)
    if not paths:
        raise _NoFiles("no .tsw files in what was named; check the path")
    reports = []
    with progress_bar("validate", quiet=quiet) as progress:
        sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
        for number, path in enumerate(paths):
            reports.append(_check(path, level, base))
            if progress:
                progress(sum(sizes[: number + 1]), sum(sizes))
    if form == "json":
        options.print_json(_document(level, reports))
    else:
        _print_text(reports, quiet)
    codes = {_code(report) for _, report in reports}
    ctx.exit(next(code for code in _WORST_FIRST if code in codes))


def _expand(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the .tsw files below them."""
    found = []
    for path in paths:
        found += sorted(p for p in path.rglob("*.tsw") if p.is_file()) if path.is_dir() else [path]
    return found


def _check(path: Path, level: Level, base: Path | None) -> tuple[Path, tsw.ValidationReport]:
    with _readable(path) as readable:
        try:
            return path, tsw.validate(readable, level=level, base=base)
        except tsw.CheckpointError as error:
            raise _Unreadable(str(error)) from error


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """A path to read the file from: standard input is copied into a temporary file."""
    if path != _STDIN:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".tsw") as spool:
        try:
            shutil.copyfileobj(sys.stdin.buffer, spool)
            spool.flush()
        except OSError as error:
            raise _Unreadable(f"standard input could not be read: {error.strerror or error}") from error
        yield Path(spool.name)


def _code(report: tsw.ValidationReport) -> int:
    if report.unreadable is not None:
        return _UNREADABLE
    if report.newer:
        return _NEWER
    return _VALID if report.ok else _INVALID


def _document(level: str, reports: Sequence[tuple[Path, tsw.ValidationReport]]) -> dict[str, Any]:
    valid = sum(report.ok for _, report in reports)
    return {
        "version": 1,
        "level": level,
        "files": [
            {
                "file": str(path),
                "ok": report.ok,
                "unreadable": report.unreadable,
                "findings": [_finding(path, report, found) for found in report.findings],
            }
            for path, report in reports
        ],
        "summary": {"files": len(reports), "valid": valid, "invalid": len(reports) - valid},
    }


def _finding(path: Path, report: tsw.ValidationReport, finding: tsw.Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "file": str(path),
        "offset": finding.offset,
        "field": finding.field,
        "expected": finding.expected,
        "found": finding.found,
        "message": finding.message.replace(str(report.file), str(path)),  # standard input has a temporary name
    }


def _print_text(reports: Sequence[tuple[Path, tsw.ValidationReport]], quiet: bool) -> None:
    for path, report in reports:
        for finding in report.findings:
            where = f"{path}: " if finding.offset is None else f"{path}: byte {finding.offset}: "
            text = f"{finding.field}: expected {finding.expected}, found {finding.found} [{finding.rule}]"
            click.echo(printable(where + text))
        if report.unreadable is not None:
            click.echo(printable(report.unreadable))
        elif report.ok and not quiet:
            click.echo(f"{printable(path)}: valid")
