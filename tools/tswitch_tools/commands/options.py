"""Options that several commands share, and the printing of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path, readable=False)  # that a file cannot be read is not wrong usage

output = click.option("-o", "--out", "out", required=True, type=PATH, metavar="OUT", help="What to write.")
threads = click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads; all cores if left out.")
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress and no summary.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(document: Any) -> None:
    """Print a document as indented JSON."""
    click.echo(json.dumps(document, indent=2))
