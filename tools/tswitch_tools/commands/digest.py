"""`tsw digest`: content ids."""

from __future__ import annotations

from pathlib import Path

import click

import tswitch_format as tsw
from tswitch_tools.commands import options
from tswitch_tools.text import printable


@click.command()
@click.argument("files", nargs=-1, required=True, type=options.PATH)
@options.as_json
def digest(*, files: tuple[Path, ...], as_json: bool) -> None:
    """Print the content id of files.

    Files of the same content have the same id, whatever their profile, encoding and remarks. It is the id that the file
    records; 'tsw validate' checks that it is right.

    \b
    Example:
      tsw digest math.tsw math-mapped.tsw
    """
    found = [(path, _content_id(path)) for path in files]
    if as_json:
        options.print_json({"files": [{"file": str(path), "content_id": content_id} for path, content_id in found]})
    else:
        for path, content_id in found:
            click.echo(f"{content_id}  {printable(path)}")


def _content_id(path: Path) -> str:
    with tsw.open(path) as file:
        if file.content_id is None:
            raise tsw.TswError(f"{path}: it records no content id, since digests are absent; pack it again to have one")
        return file.content_id
