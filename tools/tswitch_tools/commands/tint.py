"""`tsw tint`: tables of coefficients into files (AdaMerging, Model Tinting)."""

from __future__ import annotations

from pathlib import Path

import click

import tswitch_format as tsw
from tswitch_format.atomic import check_output
from tswitch_tools.arrays import read_array
from tswitch_tools.commands import options
from tswitch_tools.text import printable
from tswitch_tools.tinting import TASK, import_tinting, read_rows


@click.group()
def tint() -> None:
    """Model Tinting, AdaMerging: how much of each task goes into each tensor.

    'tsw restore --table' makes the model of it.

    \b
    Examples:
      tsw tint import all.tsw tinting.pth -o tinted.tsw --rows rows.txt --tasks mnist,cars
      tsw tint add all.tsw lambdas.npy -o merged.tsw --rows rows.txt --tasks mnist,cars
    """


def _names(ctx: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _clamp(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    least, _, greatest = value.partition(",")
    try:
        return float(least), float(greatest)
    except ValueError:
        raise click.BadParameter(f"expected two numbers, such as 0,1, found {value!r}") from None


def _layer_names(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    found = []
    for value in values:
        old, equals, new = value.partition("=")
        if not (old and equals and new):
            raise click.BadParameter(f"expected OLD=NEW, such as 'classifier_{TASK}.=head.', found {value!r}")
        found.append((old, new))
    return found


_rows = click.option(
    "--rows",
    required=True,
    type=options.PATH,
    help="Names of the matrix's rows in order: a text file, one a line, or a state dict of torch.save.",
)
_tasks = click.option(
    "--tasks", required=True, callback=_names, metavar="NAME,NAME", help="Tasks of the matrix's columns in order."
)
_name = click.option("--name", default="tinting", show_default=True, help="What the table is called.")


@tint.command("import")
@click.argument("experts", type=options.PATH)
@click.argument("tinting", type=options.PATH)
@options.output
@_rows
@_tasks
@_name
@click.option(
    "--layer-name",
    "layer_names",
    multiple=True,
    callback=_layer_names,
    metavar="OLD=NEW",
    help=f"How names of layers begin, and what to put there: 'classifier_{TASK}.=head.'. Repeatable.",
)
@options.quiet
def import_(
    *,
    experts: Path,
    tinting: Path,
    out: Path,
    rows: Path,
    tasks: list[str],
    name: str,
    layer_names: list[tuple[str, str]],
    quiet: bool,
) -> None:
    """Write a file of experts anew with a .pth of Model Tinting's code.

    EXPERTS has all tasks, as 'tsw bundle' makes it; TINTING is the .pth of the code: 'lambdas_raw' becomes a table that is
    clamped to 0..1, and the layers of each dataset tensors of the task of its name. Neither the order of rows, which is that
    of the model's named_parameters(), nor that of columns, a list in the code, is in it. Layers keep their names, such as
    'classifier_mnist.weight', unless --layer-name gives them those that your model has for the layer of the task at hand.

    \b
    Examples:
      tsw tint import all.tsw tinting.pth -o tinted.tsw --rows rows.txt --tasks mnist,cars
      tsw tint import all.tsw tinting.pth -o tinted.tsw --rows base.pt --tasks mnist,cars \\
        --layer-name 'classifier_{task}.=head.'
    """
    check_output(out, [rows])
    layers = import_tinting(
        experts, tinting, out, rows=read_rows(rows), tasks=tasks, name=name, layer_names=layer_names
    )
    _say(out, name, quiet, sum(map(len, layers.values())))


@tint.command()
@click.argument("file", type=options.PATH)
@click.argument("values", type=options.PATH)
@options.output
@_rows
@_tasks
@_name
@click.option(
    "--clamp", callback=_clamp, metavar="LEAST,GREATEST", help="The range into which coefficients are brought in use."
)
@options.quiet
def add(
    *,
    file: Path,
    values: Path,
    out: Path,
    rows: Path,
    tasks: list[str],
    name: str,
    clamp: tuple[float, float] | None,
    quiet: bool,
) -> None:
    """Write a file anew with a table of coefficients.

    It takes the place of one of the same name.

    VALUES: [tensors, tasks], .npy, or .safetensors or .pt with one tensor.

    \b
    Example:
      tsw tint add all.tsw lambdas.npy -o merged.tsw --rows rows.txt --tasks mnist,cars --clamp 0,1
    """
    check_output(out, [values, rows])
    matrix = read_array(values, "the coefficients")
    tsw.add_table(file, out, name, matrix, rows=read_rows(rows), tasks=tasks, clamp=clamp)
    _say(out, name, quiet, 0)


def _say(out: Path, name: str, quiet: bool, layers: int) -> None:
    if quiet:
        return
    with tsw.open(out) as file:
        table = file.tables[name]
    clamped = "" if table.clamp is None else f", clamped to {table.clamp[0]:g}..{table.clamp[1]:g}"
    more = f", and {layers} tensors of layers" if layers else ""
    what = f"table {printable(name)} of {len(table.rows)} tensors and {len(table.tasks)} tasks"
    click.echo(f"{printable(out)}: {what} added{clamped}{more}")
