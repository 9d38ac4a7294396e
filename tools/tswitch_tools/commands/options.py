"""Options that several commands share, and the printing of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path, readable=False)  # that a file cannot be read is not wrong usage

output = click.option("-o", "--out", "out", required=True, type=PATH, metavar="OUT", help="What to write.")
threads = click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads; all cores if left out.")


def _base_id(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str | None, str | None]:
    """ID or ID@REV; an id has no @."""
    if value is None:
        return None, None
    name, at, revision = value.partition("@")
    if not name or (at and not revision):
        raise click.BadParameter(f"expected ID or ID@REVISION, found {value!r}")
    return name, revision or None


base_id = click.option(
    "--base-id", callback=_base_id, metavar="ID@REV", help="Where the base is found, e.g. org/model@main."
)
profile = click.option(
    "--profile",
    type=click.Choice(["archive", "mapped"]),
    default="archive",
    show_default=True,
    help="Smallest, or ready to be mapped into memory.",
)


def named_paths(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    """NAME=PATH, or a path that is there, which then is its own name: that of its file without the ending, or its folder."""
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or Path(value).exists():
            path = value
            name = Path(value).name if Path(value).is_dir() else Path(value).stem
        if not name or not path:
            raise click.BadParameter(f"expected a path or NAME=PATH, found {value!r}")
        if name in found:
            raise click.BadParameter(f"expected different names, found {name!r} twice; write NAME=PATH for one of them")
        found[name] = Path(path)
    return found


def _upper(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    return value.upper()


shared_dtype = click.option(
    "--shared-dtype",
    type=click.Choice(["f32", "bf16", "f16"]),
    default="f32",
    show_default=True,
    callback=_upper,
    help="How the vector is stored.",
)
experts = click.option(
    "--experts",
    multiple=True,
    callback=named_paths,
    metavar="[NAME=]PATH",
    help="TALL masks: the expert of one task. Repeat for each.",
)
multi_task = click.option(
    "--multi-task", type=PATH, metavar="VECTOR", help="TALL masks: their vector, a checkpoint or an NPY file."
)
ties = click.option("--ties", is_flag=True, help="TALL masks: the experts' vectors were merged by TIES.")
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress and no summary.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(document: Any) -> None:
    """Print a document as indented JSON."""
    click.echo(json.dumps(document, indent=2))
