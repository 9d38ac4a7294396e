"""`tsw bundle`, `tsw extract`, `tsw repack`: files to files."""

from __future__ import annotations

from pathlib import Path

import click

import tswitch_format as tsw
from tswitch_tools.commands import options
from tswitch_tools.progress import progress_bar
from tswitch_tools.text import printable, size


@click.command()
@click.argument("files", nargs=-1, required=True, type=options.PATH)
@options.output
@options.quiet
def bundle(*, files: tuple[Path, ...], out: Path, quiet: bool) -> None:
    """Put the tasks of several files of one base into one.

    Nothing is decoded. No two tasks may have the same name.

    \b
    Example:
      tsw bundle math.tsw code.tsw -o all.tsw
    """
    with progress_bar("bundle", quiet=quiet) as progress:
        written = tsw.bundle(files, out, progress=progress)
    _say(written, quiet)


@click.command()
@click.argument("file", type=options.PATH)
@click.option("--task", required=True, metavar="NAME", help="The task to take.")
@options.output
@options.quiet
def extract(*, file: Path, task: str, out: Path, quiet: bool) -> None:
    """Write one task of a file as a file of its own.

    \b
    Example:
      tsw extract all.tsw --task math -o math.tsw
    """
    _say(tsw.extract(file, task, out), quiet)


@click.command()
@click.argument("file", type=options.PATH)
@options.output
@click.option(
    "--profile",
    required=True,
    type=click.Choice(["archive", "mapped"]),
    help="Smallest, or ready to be mapped into memory.",
)
@options.threads
@options.quiet
def repack(*, file: Path, out: Path, profile: str, threads: int | None, quiet: bool) -> None:
    """Write a file in another profile, with the same content.

    \b
    Example:
      tsw repack math.tsw -o math-mapped.tsw --profile mapped
    """
    with progress_bar("repack", quiet=quiet) as progress:
        written = tsw.repack(file, out, profile=profile, threads=threads, progress=progress)
    _say(written, quiet)


def _say(path: Path, quiet: bool) -> None:
    if not quiet:
        click.echo(f"{printable(path)}: {size(path.stat().st_size)}")
