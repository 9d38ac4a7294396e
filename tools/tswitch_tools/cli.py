"""The `tsw` command: its commands in groups, and every error as one line and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from tswitch_format import FORMAT_VERSION, __version__
from tswitch_format.errors import OptionError, TswError
from tswitch_tools.commands.bundle import bundle, extract, repack
from tswitch_tools.commands.diff import diff
from tswitch_tools.commands.digest import digest
from tswitch_tools.commands.export import export
from tswitch_tools.commands.failure import Failure, Misuse
from tswitch_tools.commands.import_ import import_
from tswitch_tools.commands.info import info
from tswitch_tools.commands.merge import merge
from tswitch_tools.commands.pack import pack
from tswitch_tools.commands.restore import restore
from tswitch_tools.commands.route import route
from tswitch_tools.commands.tall import emr, tall
from tswitch_tools.commands.tint import tint
from tswitch_tools.commands.validate import validate

_GROUPS: Mapping[str, Sequence[click.Command]] = {
    "Experts to files and back": (pack, restore, merge),
    "Look and check": (info, validate, diff, digest),
    "Files to files": (bundle, extract, repack),
    "Tasks over one vector": (tall, emr),
    "Tasks by themselves": (route, tint),
    "Other people's files": (import_, export),
}


class _Group(click.Group):
    """Shows commands in groups, and turns what may go wrong into one line on standard error."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(str(command.name), command.get_short_help_str(limit=80)) for command in commands])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a closed pipe is still handled
        except OptionError as error:
            raise Misuse(str(error)) from error
        except TswError as error:
            raise Failure(str(error)) from error
        except MemoryError as error:
            raise Failure("not enough memory; close other programs, or use fewer --threads") from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly
            where = f"{error.filename}: " if error.filename else ""
            raise Failure(f"{where}{error.strerror or error}; check the path and its permissions") from error
        except KeyboardInterrupt:
            click.echo("tsw: interrupted", err=True)
            sys.exit(130)
        return result


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  tsw pack base/ finetuned/ -o math.tsw --task math
  tsw info math.tsw
  tsw validate experts/
  tsw restore base/ math.tsw -o restored.safetensors

\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; 'tsw validate' has more.
'tsw COMMAND --help' says more of a command.
""",
)
@click.version_option(__version__, message=f"tsw %(version)s, TSW format {FORMAT_VERSION}")
def tsw() -> None:
    """Keep fine-tuned experts as small .tsw files: what each of them changes in the base model that they share."""


for _commands in _GROUPS.values():
    for _command in _commands:
        tsw.add_command(_command)
