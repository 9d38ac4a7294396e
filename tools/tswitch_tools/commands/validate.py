"""`tsw validate`: a report and an exit code for pipelines. What it does is in `tswitch_tools.validation`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from tswitch_format.container.verify import LEVELS, Level
from tswitch_format.errors import OutputError
from tswitch_tools.commands.failure import Failure, Misuse
from tswitch_tools.progress import progress_bar
from tswitch_tools.validation.channel import Channel, ReportFile, StandardOutput
from tswitch_tools.validation.checker import Checker, base_problem
from tswitch_tools.validation.json_report import JsonReport
from tswitch_tools.validation.junit_report import JunitReport
from tswitch_tools.validation.pool import check_all
from tswitch_tools.validation.result import NO_FILES, Result, Tally
from tswitch_tools.validation.sarif_report import SarifReport
from tswitch_tools.validation.targets import Target, find_targets, standard_input
from tswitch_tools.validation.text_report import TextReport
from tswitch_tools.validation.writer import Writer

_PATH = click.Path(path_type=str, readable=False)  # as written: in a Path, "./-" would be standard input
_FORMATS: Mapping[str, Callable[[str, bool], Writer]] = {
    "text": lambda level, quiet: TextReport(quiet),
    "json": lambda level, quiet: JsonReport(level),
    "sarif": lambda level, quiet: SarifReport(),
    "junit": lambda level, quiet: JunitReport(),
}


class _NoFiles(Failure):
    exit_code = NO_FILES


class _Unfinished(Failure):
    exit_code = 3  # not 1, which would say that a file is invalid


@click.command()
@click.argument("files", nargs=-1, required=True, type=_PATH, metavar="FILE...")
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="full",
    show_default=True,
    help="Index only; also the checksums of all bytes; also decode everything and check digests.",
)
@click.option("--base", type=_PATH, metavar="BASE", help="Check also that this is the base of the files.")
@click.option(
    "--format",
    "form",
    type=click.Choice(list(_FORMATS)),
    default="text",
    show_default=True,
    help="Form of the report.",
)
@click.option("-o", "--out", type=_PATH, metavar="OUT", help="Write the report here, and text to standard output.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Check so many files at once, each in its own process.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress, and no lines for valid files.")
@click.pass_context
def validate(
    ctx: click.Context,
    *,
    files: tuple[str, ...],
    level: Level,
    base: str | None,
    form: str,
    out: str | None,
    jobs: int,
    quiet: bool,
) -> None:
    """Check files against the specification.

    FILE may be a folder, which stands for all .tsw files below it, or - for standard input. A file that is named twice is
    checked once.

    \b
    Exit codes:
      0  all files are valid
      1  a file is invalid, or not of this base
      2  wrong usage
      3  a file, or the base, could not be read, or the report not be written
      4  a file needs a newer reader
      5  there are no files
    With several files the worst wins, in the order 3, 1, 4, 0.

    Level structure is bounded: files below 1 MiB, made to cost as much as they can, take about a second. The others take
    as long as what a file holds: of files by strangers check the structure first, and give the rest a limit of time
    (timeout 600 tsw validate FILE).

    \b
    Examples:
      tsw validate math.tsw
      tsw validate experts/ --level checksums --format json > report.json
      tsw validate experts/ --format sarif -o report.sarif --jobs 4
      curl URL | tsw validate -
    """
    targets = find_targets(files)
    tally = Tally()
    with ExitStack() as stack, _finishing():
        channels = _channels(stack, form, out, level, quiet, [*targets, *([Target(base, base)] if base else [])])
        for channel in channels:
            channel.begin()
        for result in _results(targets, level, base, jobs, quiet):
            tally.add(result)
            for channel in channels:
                channel.add(result)
            if all(channel.problem for channel in channels):
                break  # nobody would know
        for channel in channels:
            channel.end(tally)
    problems = [channel.problem for channel in channels if channel.problem]
    if problems:
        raise _Unfinished("; ".join(problems) + "; make room, or name another place with -o")
    if not targets:
        raise _NoFiles("no .tsw files in what was named; check the path")
    ctx.exit(tally.code)


@contextmanager
def _finishing() -> Iterator[None]:
    """What goes wrong outside of any one file, such as the start of a process, is no file's fault."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise _Unfinished(f"the check could not be finished: {reason}; try again, with fewer --jobs") from error
    except MemoryError as error:
        raise _Unfinished("the check could not be finished: not enough memory; use fewer --jobs") from error


def _channels(
    stack: ExitStack, form: str, out: str | None, level: str, quiet: bool, inputs: Sequence[Target]
) -> list[Channel]:
    """The report on standard output; or in a file, and text on standard output."""
    if out is None:
        return [Channel(StandardOutput(), _FORMATS[form](level, quiet))]
    if out == "-":
        raise Misuse("-o: expected the name of a file, found -; leave -o out, and the report goes to standard output")
    if any(_same_file(out, target.path) for target in inputs):
        raise Misuse(f"-o: {out} is one of the files to check; name another file for the report")
    try:
        sink = ReportFile(out)
    except OutputError as error:
        raise _Unfinished(str(error)) from error
    stack.callback(sink.abort)
    return [Channel(StandardOutput(), TextReport(quiet)), Channel(sink, _FORMATS[form](level, quiet))]


def _same_file(a: str, b: str) -> bool:
    try:
        return Path(a).samefile(b)
    except OSError:
        return False


def _results(targets: Sequence[Target], level: Level, base: str | None, jobs: int, quiet: bool) -> Iterator[Result]:
    """All results. Where the base cannot be opened, the files are checked all the same, and none of them is valid."""
    problem = None if base is None or not targets else base_problem(base)
    checker = Checker(level, base if problem is None else None)
    with standard_input(targets) as readable, _progress(readable, quiet) as done:
        for result, target in zip(check_all(readable, checker, jobs), readable, strict=True):
            done(target)
            yield result if problem is None else result.without_base(f"{base}: {problem}")


@contextmanager
def _progress(targets: Sequence[Target], quiet: bool) -> Iterator[Callable[[Target], None]]:
    """A progress bar, unless lines on the same terminal show how far it is."""
    with progress_bar("validate", quiet=quiet or os.isatty(1)) as update:
        sizes = {target: target.size for target in targets} if update else {}
        total, sofar = sum(sizes.values()), 0

        def done(target: Target) -> None:
            nonlocal sofar
            if update:
                sofar += sizes[target]
                update(sofar, total)

        yield done
