"""`tsw merge`: base + all tasks of a file -> one model."""

from __future__ import annotations

from pathlib import Path

import click

import tswitch_format as tsw
from tswitch_tools.commands import options
from tswitch_tools.commands.failure import Misuse
from tswitch_tools.progress import progress_bar
from tswitch_tools.text import printable, size


@click.command()
@click.argument("base", type=options.PATH)
@click.argument("file", type=options.PATH)
@options.output
@click.option(
    "--method",
    type=click.Choice(["sum", "ties", "consensus"]),
    required=True,
    help="Add all up, elect signs first, or keep what enough tasks have active.",
)
@click.option(
    "-k",
    "--active-in",
    "k",
    type=click.IntRange(min=0),
    metavar="K",
    help="consensus: how many tasks an element must be active in.  [default: 2]",
)
@click.option(
    "--scale",
    type=float,
    metavar="X",
    help="What the merged difference is multiplied by.  [default: 0.3; 1 for ties]",
)
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="A task to merge; all if left out. Repeatable.")
@click.option("--check-base/--no-check-base", default=True, help="Refuse a base of other content, or go on with it.")
@options.threads
@options.quiet
def merge(
    *,
    base: Path,
    file: Path,
    out: Path,
    method: str,
    k: int | None,
    scale: float | None,
    tasks: tuple[str, ...],
    check_base: bool,
    threads: int | None,
    quiet: bool,
) -> None:
    """Write one model for all tasks of a file: base + scale * what they add.

    sum: task arithmetic. ties: the mean of what agrees with the sum in sign. consensus: the sum where at least K tasks are
    active; 2 leaves out what no task or only one needs. Of a file that 'tsw tall make' made, the vector is the sum, of all its
    tasks. The papers choose the scale on validation data, from 0.1 to 1.

    \b
    Examples:
      tsw merge base.safetensors all.tsw -o multi.safetensors --method consensus -k 2 --scale 0.4
      tsw merge base/ all.tsw -o multi/ --method ties --task math --task code
    """
    if k is not None and method != "consensus":
        raise Misuse(f"-k: it is for --method consensus, found {method}; leave it out")
    with progress_bar("merge", quiet=quiet) as progress:
        result = tsw.merge(
            base,
            file,
            out,
            method=method,
            k=2 if k is None else k,
            scale=scale,
            tasks=tasks or None,
            check_base=check_base,
            threads=threads,
            progress=progress,
        )
    if not quiet:
        click.echo(f"{printable(result.path)}: {result.tensors} tensors, {size(result.nbytes)}")
