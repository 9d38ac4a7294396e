"""`tsw info`: what a file holds."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

import tswitch_format as tsw
from tswitch_tools import heat_map, overlap_report, pictures
from tswitch_tools.commands import options
from tswitch_tools.commands.failure import Misuse
from tswitch_tools.progress import progress_bar
from tswitch_tools.report import FileReport, TaskReport, report
from tswitch_tools.tables import new_table, output_console
from tswitch_tools.text import count, printable, rounded, size

_RULE = len("projection")  # columns: no rule has a longer word


@click.command()
@click.argument("file", type=options.PATH)
@click.option("--tensors", is_flag=True, help="List every tensor of every task.")
@click.option("--overlap", is_flag=True, help="Compare the tasks' masks, in all and pair by pair.")
@click.option(
    "--heat-map", "picture", type=options.PATH, metavar="OUT", help="With --overlap: pairs as a picture, .png or .svg."
)
@options.as_json
def info(*, file: Path, tensors: bool, overlap: bool, picture: Path | None, as_json: bool) -> None:
    """Show what a file holds and how small it is.

    Only the index and tables of coefficients are read, and with --overlap the masks. Sizes are of the whole model: '% of fp32'
    is of 4 bytes for each element of the base, '% of ... source' of the expert's checkpoint in its own types. 'bits' and
    'entropy' (what ideal codes would need for masks and signs) are bits an element of the base.

    --overlap counts, for the float tensors of the base, the elements that are active in no task (catastrophic), in one
    (selfish), in two and so on, and for each pair of tasks the share that is active in both of what is active in either.

    \b
    Examples:
      tsw info math.tsw --tensors
      tsw info math.tsw --json
      tsw info all.tsw --overlap --heat-map overlap.svg
    """
    if picture and not overlap:
        raise Misuse("--heat-map: there is nothing to draw without --overlap; add it, or leave --heat-map out")
    if picture:
        pictures.check(picture, inputs=[file])
    masks = None
    with tsw.open(file) as opened:
        found = report(opened, tensors=tensors)
        if overlap:
            with progress_bar("overlap", unit="chunks") as progress:
                masks = tsw.overlap(opened, progress=progress)
    if masks and picture:
        heat_map.write(masks, picture)
    if as_json:
        shown = {"overlap": overlap_report.document(masks, tensors=tensors)} if masks else {}
        options.print_json(found.document(tensors=tensors) | shown)
        return
    console = output_console()
    _print_file(found, console)
    console.print(_task_table(found))
    for task in found.tasks if tensors else ():
        console.print()
        console.print(f"task {printable(task.name)}")
        console.print(_tensor_table(task))
    if masks:
        console.print()
        overlap_report.show(masks, console, tensors=tensors)


def _print_file(found: FileReport, console: Console) -> None:
    base = found.base
    name = (base.id or "(no id)") + (f"@{base.revision}" if base.revision else "")
    console.print(
        f"{printable(found.file)}: TSW {found.version}, profile {found.profile}, {size(found.file_bytes)}",
        soft_wrap=True,
    )
    console.print(f"content id: {found.content_id or 'none'}", soft_wrap=True)
    console.print(
        f"base: {printable(name)}, {base.tensors} tensors, {count(base.params)} elements, {size(base.bytes)} "
        f"({size(base.bytes_fp32)} as fp32)",
        soft_wrap=True,
    )
    if found.shared.arrays:
        shared = found.shared
        console.print(
            f"shared: {shared.arrays} arrays, {count(shared.elements)} elements, {'+'.join(shared.dtypes)}, "
            f"{size(shared.bytes)}: in the tasks' sizes in equal parts, 'own' is without them",
            soft_wrap=True,
        )
    if found.router is not None:
        router = found.router
        words = (("extractor", router.extractor), ("preprocessing", router.preprocessing))
        console.print(
            f"router: {router.k} nearest by {router.metric} of {router.samples} samples of {router.tasks} tasks, "
            f"{router.width} numbers each" + "".join(f", {what} {printable(text)}" for what, text in words if text),
            soft_wrap=True,
        )
    for table in found.tables:
        clamped = "" if table.clamp is None else ", clamped to {} to {}".format(*map(rounded, table.clamp))
        console.print(
            f"table {printable(table.name)}: {table.rows} tensors, tasks {', '.join(map(printable, table.tasks))}; "
            f"{rounded(table.least)} to {rounded(table.greatest)}{clamped}",
            soft_wrap=True,
        )
    for key, value in found.metadata.items():
        console.print(f"{printable(key)}: {printable(value)}", soft_wrap=True)


def _task_table(found: FileReport) -> Table:
    sources = {"+".join(task.source_dtypes) for task in found.tasks}
    source = f"{sources.pop()} source" if len(sources) == 1 else "source"
    own = ("own",) if found.shared.arrays else ()
    numbers = ("tensors", "density", "size", *own, "% of fp32", f"% of {source}", "bits", "entropy")
    table = new_table("task", *numbers, "rule", left=("task", "rule"), least={"rule": _RULE})
    for task in found.tasks:
        rule = (task.select, task.knob, task.recipe.get("knob_per"), task.recipe.get("knob_dtype"))
        table.add_row(
            printable(task.name),
            str(task.tensors),
            rounded(task.density),
            size(task.bytes),
            *([size(task.bytes - task.shared_bytes)] if own else []),
            rounded(task.percent_of_fp32),
            rounded(task.percent_of_source),
            rounded(task.bits_per_param),
            rounded(task.entropy_bits_per_param),
            printable(" ".join(part for part in rule if part) or "-"),
        )
    return table


def _tensor_table(task: TaskReport) -> Table:
    left = ("tensor", "kind", "dtype", "shape", "codecs")
    table = new_table("tensor", "kind", "dtype", "shape", "active", "density", "knob", "size", "codecs", left=left)
    for entry in task.entries:
        table.add_row(
            printable(entry.name),
            entry.kind,
            entry.dtype,
            "x".join(map(str, entry.shape)) or "scalar",
            "-" if entry.density is None else str(entry.active),
            "-" if entry.density is None else rounded(entry.density),
            "-" if entry.knob is None else rounded(entry.knob),
            size(entry.bytes),
            ", ".join(entry.codecs) or "-",
        )
    return table
