"""An error of a command: one line on standard error, and an exit code."""

from __future__ import annotations

from typing import IO, Any

import click

from tswitch_tools.text import printable


class Failure(click.ClickException):
    """Ends a command with `tsw: error: MESSAGE` and `exit_code`."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line."""
        click.echo(f"tsw: error: {printable(self.message)}", file=file, err=file is None)


class Misuse(Failure):
    """What was asked for makes no sense."""

    exit_code = 2
