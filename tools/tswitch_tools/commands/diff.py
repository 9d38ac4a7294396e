"""`tsw diff`: in what two files differ."""

from __future__ import annotations

from pathlib import Path

import click

import tswitch_format as tsw
from tswitch_tools.commands import options
from tswitch_tools.difference import Difference, TaskDifference, TensorDifference, compare
from tswitch_tools.text import printable


@click.command()
@click.argument("a", type=options.PATH)
@click.argument("b", type=options.PATH)
@options.quiet
@options.as_json
@click.pass_context
def diff(ctx: click.Context, *, a: Path, b: Path, quiet: bool, as_json: bool) -> None:
    """Compare the content of two files.

    Remarks, recipes, profile and encoding are no content. Exit code 0: the same, 1: different, or failed, with a line
    on standard error.

    \b
    Example:
      tsw diff before.tsw after.tsw
    """
    with tsw.open(a) as first, tsw.open(b) as second:
        found = compare(first, second)
    if as_json:
        options.print_json(found.document())
    elif not quiet:
        _print(found)
    ctx.exit(0 if found.same else 1)


def _print(found: Difference) -> None:
    click.echo(f"base: {'same' if found.same_base else 'differs'}")
    for what, how in found.beside.items():
        click.echo(f"{printable(what)}: {how}")
    for task in found.tasks:
        click.echo(f"task {printable(task.name)}: {_status(task)}")
        for tensor in task.tensors:
            click.echo(f"  {printable(tensor.name)}: {', '.join(_words(tensor))}")


def _status(task: TaskDifference) -> str:
    if task.status.startswith("only"):
        return task.status
    return f"{task.status} ({task.same} tensors the same, {len(task.tensors)} differ)"


def _words(tensor: TensorDifference) -> list[str]:
    words = {
        "mask": f"mask differs in {tensor.mask_elements} elements",
        "sign": f"sign differs in {tensor.sign_elements} elements",
        "factors": "factors differ",
        "only in a": "only in a",
        "only in b": "only in b",
    }
    return [words.get(what, f"{what} differs") for what in tensor.differs]
