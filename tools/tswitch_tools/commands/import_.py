"""`tsw import`: other people's files -> file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from tswitch_format import BuildResult
from tswitch_format.checkpoint import borrow_checkpoint
from tswitch_format.errors import OptionError
from tswitch_tools import importers
from tswitch_tools.commands import options
from tswitch_tools.importers import Importer, ImportOptions, tall_masks
from tswitch_tools.progress import progress_bar
from tswitch_tools.tables import new_table, output_console
from tswitch_tools.text import printable, size


def print_formats(formats: Sequence[tuple[str, str]]) -> None:
    """Print a table of names and summaries."""
    table = new_table("format", "what it is", left=("format", "what it is"))
    for name, summary in formats:
        table.add_row(name, summary)
    output_console().print(table)


def _list(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        print_formats([(importer.NAME, importer.SUMMARY) for importer in importers.formats()])
        ctx.exit()


@click.command("import")
@click.argument("source", type=options.PATH)
@options.output
@click.option(
    "--base", type=options.PATH, metavar="BASE", help="The checkpoint that the source is of; most formats need it."
)
@click.option("--format", "format_name", metavar="NAME", help="What the source is; looked at if left out. See --list.")
@click.option("--expert", type=options.PATH, metavar="E", help="The fine-tuned checkpoint, to compute knobs of.")
@click.option("--scales", type=options.PATH, metavar="FILE", help="Knobs by name: JSON, or a .pt file of tensors.")
@click.option("--knob", type=float, metavar="X", help="One knob for all tensors.")
@options.experts
@options.multi_task
@options.ties
@options.shared_dtype
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
    base: Path | None,
    format_name: str | None,
    expert: Path | None,
    scales: Path | None,
    knob: float | None,
    experts: Mapping[str, Path],
    multi_task: Path | None,
    ties: bool,
    shared_dtype: str,
    task: str | None,
    profile: str,
    base_id: tuple[str | None, str | None],
    threads: int | None,
    quiet: bool,
) -> None:
    """Make a file of switches that other people's code made.

    SOURCE: BitDelta's diff.pt, a folder of the T-Switch authors' *_compressed.bin, TALL masks, or what 'tsw export --to
    safetensors' wrote, which alone needs no --base. What it holds is stored as it is, nothing is chosen anew. The authors'
    files have no knobs: give the expert, a file of knobs, or one number. TALL masks have no vector: give all experts, or it.

    \b
    Examples:
      tsw import --list
      tsw import diff.pt -o chat.tsw --base base/ --task chat --base-id org/model@main
      tsw import compressed/ -o all.tsw --base base.safetensors --knob 0.002
      tsw import compressed/ -o sun397.tsw --base base.pt --task sun397 --expert sun397.pt
      tsw import TALL_mask_8task.npy -o all.tsw --base base.pt --multi-task mtl.safetensors
      tsw import all.safetensors -o all.tsw
    """
    wanted = ImportOptions(
        task=task,
        scales=scales,
        knob=knob,
        experts=experts,
        multi_task=multi_task,
        ties=ties,
        shared_dtype=shared_dtype,
        profile=profile,
        base_id=base_id[0],
        base_revision=base_id[1],
        threads=threads,
    )
    importer = importers.find(source, format_name)
    result = import_source(importer, source, base, out, wanted, expert=expert, quiet=quiet)
    if not quiet:
        click.echo(
            f"{printable(result.path)}: {size(result.nbytes)}, from {importer.NAME} "
            f"({result.switches} switches, {result.dense} dense)"
        )


def import_source(
    importer: Importer,
    source: Path,
    base: Path | None,
    out: Path,
    wanted: ImportOptions,
    *,
    expert: Path | None = None,
    quiet: bool,
) -> BuildResult:
    """Import a source, with progress."""
    if base is None and importers.needs_base(importer):
        raise OptionError(
            f"{source}: expected --base, the checkpoint that it is of, found none; give it, {importer.NAME} needs it"
        )
    if importer.NAME != tall_masks.NAME:
        importers.refuse_experts(source, wanted)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(borrow_checkpoint(base)) if base is not None else None
        fine_tuned = stack.enter_context(borrow_checkpoint(expert)) if expert is not None else None
        progress = stack.enter_context(progress_bar("import", quiet=quiet, unit="tensors"))
        return importer.convert(source, reader, out, replace(wanted, expert=fine_tuned, progress=progress))
