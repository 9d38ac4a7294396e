"""`tsw import`: other people's files -> file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tswitch_format.checkpoint import borrow_checkpoint
from tswitch_tools import importers
from tswitch_tools.commands import options
from tswitch_tools.importers import ImportOptions
from tswitch_tools.progress import progress_bar
from tswitch_tools.text import printable, size

_UNCUT = 4096  # columns: what a pipe gets is not cut to the width of a screen


def print_formats(formats: Sequence[tuple[str, str]]) -> None:
    """Print a table of names and summaries."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("format", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name, summary in formats:
        table.add_row(name, summary)
    Console(width=None if sys.stdout.isatty() else _UNCUT, markup=False, emoji=False, highlight=False).print(table)


def _list(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        print_formats([(importer.NAME, importer.SUMMARY) for importer in importers.formats()])
        ctx.exit()


@click.command("import")
@click.argument("source", type=options.PATH)
@options.output
@click.option("--base", required=True, type=options.PATH, metavar="BASE", help="The checkpoint that the source is of.")
@click.option("--format", "format_name", metavar="NAME", help="What the source is; looked at if left out. See --list.")
@click.option("--expert", type=options.PATH, metavar="E", help="The fine-tuned checkpoint, to compute knobs of.")
@click.option("--scales", type=options.PATH, metavar="FILE", help="Knobs by name: JSON, or a .pt file of tensors.")
@click.option("--knob", type=float, metavar="X", help="One knob for all tensors.")
@click.option("--task", metavar="NAME", help="Name of the task, or which of several to take. [default: task, or all]")
@options.profile
@options.base_id
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="Show the formats, and do nothing."
)
@options.threads
@options.quiet
def import_(
    *,
    source: Path,
    out: Path,
    base: Path,
    format_name: str | None,
    expert: Path | None,
    scales: Path | None,
    knob: float | None,
    task: str | None,
    profile: str,
    base_id: tuple[str | None, str | None],
    threads: int | None,
    quiet: bool,
) -> None:
    """Make a file of switches that other people's code made.

    SOURCE: BitDelta's diff.pt, or a folder of the T-Switch authors' *_compressed.bin. What it holds is stored as it is,
    nothing is chosen anew. The authors' files have no knobs: give the expert, a file of knobs, or one number.

    \b
    Examples:
      tsw import --list
      tsw import diff.pt -o chat.tsw --base base/ --task chat --base-id org/model@main
      tsw import compressed/ -o all.tsw --base base.safetensors --knob 0.002
      tsw import compressed/ -o sun397.tsw --base base.pt --task sun397 --expert sun397.pt
    """
    importer = importers.find(source, format_name)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(borrow_checkpoint(base))
        fine_tuned = stack.enter_context(borrow_checkpoint(expert)) if expert is not None else None
        progress = stack.enter_context(progress_bar("import", quiet=quiet, unit="tensors"))
        wanted = ImportOptions(
            task=task,
            expert=fine_tuned,
            scales=scales,
            knob=knob,
            profile=profile,
            base_id=base_id[0],
            base_revision=base_id[1],
            threads=threads,
            progress=progress,
        )
        result = importer.convert(source, reader, out, wanted)
    if not quiet:
        click.echo(
            f"{printable(result.path)}: {size(result.nbytes)}, from {importer.NAME} "
            f"({result.switches} switches, {result.dense} dense)"
        )
