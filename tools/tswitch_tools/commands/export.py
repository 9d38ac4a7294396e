"""`tsw export`: a task of a file -> other people's files."""

from __future__ import annotations

from pathlib import Path

import click

import tswitch_format as tsw
from tswitch_format.errors import OptionError
from tswitch_tools import exporters
from tswitch_tools.commands import options
from tswitch_tools.commands.import_ import print_formats
from tswitch_tools.progress import progress_bar
from tswitch_tools.text import printable

_SHOWN = 20  # names in a message


def _list(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        print_formats([(exporter.NAME, exporter.SUMMARY) for exporter in exporters.formats()])
        ctx.exit()


@click.command()
@click.argument("file", type=options.PATH)
@options.output
@click.option("--to", required=True, metavar="NAME", help="The format to write. See --list.")
@click.option("--task", metavar="NAME", help="The task to write. [default: the only one, or all]")
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="Show the formats, and do nothing."
)
@options.threads
@options.quiet
def export(*, file: Path, out: Path, to: str, task: str | None, threads: int | None, quiet: bool) -> None:
    """Write one task of a file, or all where a format can hold them, as other people's code reads it.

    What a format cannot hold is refused; what it does not keep is said on standard error. Only safetensors is written by
    several threads.

    \b
    Examples:
      tsw export --list
      tsw export chat.tsw -o diff.pt --to bitdelta
      tsw export all.tsw -o compressed/ --to tswitch-authors --task sun397
      tsw export all.tsw -o all.safetensors --to safetensors
    """
    exporter = exporters.find(to)
    with tsw.open(file) as opened:
        if task is None and not exporters.takes_all(exporter):
            task = _only(opened)
        if task is not None:
            opened.keys(task)  # raises where there is none of that name
        what = f"task {printable(task)}" if task is not None else f"{len(opened.tasks)} tasks"
        with progress_bar("export", quiet=quiet, unit="tensors") as progress:
            remarks = exporter.convert(opened, task, out, threads=threads, progress=progress)
    if quiet:
        return
    for remark in remarks:
        click.echo(f"tsw: note: {printable(remark)}", err=True)
    click.echo(f"{printable(out)}: {what} as {exporter.NAME}")


def _only(file: tsw.SwitchFile) -> str:
    if len(file.tasks) != 1:
        some = ", ".join(file.tasks[:_SHOWN]) + (", ..." if len(file.tasks) > _SHOWN else "")
        raise OptionError(f"{file.path}: it has {len(file.tasks)} tasks: {some or 'none'}; name one with --task")
    return file.tasks[0]
