"""`tsw restore`: base + file -> checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

import tswitch_format as tsw
from tswitch_tools.commands import options
from tswitch_tools.progress import progress_bar
from tswitch_tools.text import printable, size


def _tasks(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, float]]:
    """NAME or NAME=COEFFICIENT; what follows the last = is the coefficient."""
    found = []
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            found.append((name, float(number)) if equals else (value, 1.0))
        except ValueError:
            raise click.BadParameter(f"expected a number after the last '=' of {value!r}, such as {value}=1") from None
    return found


@click.command()
@click.argument("base", type=options.PATH)
@click.argument("file", type=options.PATH)
@options.output
@click.option(
    "--task",
    "tasks",
    callback=_tasks,
    multiple=True,
    metavar="NAME[=COEFFICIENT]",
    help="Task to apply; the only one if left out. Repeatable: several are added up in the given order.",
)
@click.option(
    "--table", metavar="NAME", help="In place of tasks: a table of coefficients of the file, for each tensor its own."
)
@click.option("--layers", metavar="TASK", help="With --table: the task whose own layers count, such as its head.")
@click.option("--check-base/--no-check-base", default=True, help="Refuse a base of other content, or go on with it.")
@options.threads
@options.quiet
def restore(
    *,
    base: Path,
    file: Path,
    out: Path,
    tasks: list[tuple[str, float]],
    table: str | None,
    layers: str | None,
    check_base: bool,
    threads: int | None,
    quiet: bool,
) -> None:
    """Write the checkpoint that a base and tasks of a file make.

    OUT is a .safetensors file, or a folder, which is sharded where the base is.

    \b
    Examples:
      tsw restore base/ math.tsw -o math/
      tsw restore base.safetensors all.tsw -o mix.safetensors --task math=0.5 --task code=0.5
      tsw restore base.safetensors math.tsw -o without.safetensors --task math=-1
      tsw restore base.safetensors tinted.tsw -o mnist.safetensors --table tinting --layers mnist
    """
    with progress_bar("restore", quiet=quiet) as progress:
        result = tsw.restore(
            base,
            file,
            out,
            tasks=tasks or None,
            table=table,
            layers=layers,
            check_base=check_base,
            threads=threads,
            progress=progress,
        )
    if not quiet:
        click.echo(f"{printable(result.path)}: {result.tensors} tensors, {size(result.nbytes)}")
