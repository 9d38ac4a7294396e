"""Tables as commands print them: text to the left, numbers to the right.

output_console    standard output, of the terminal's width, or of none
new_table         a table that is filled row by row
print_in_blocks   a table of any number of columns: those that do not fit come below, so that no number is cut
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table

_UNCUT = 4096  # columns: what a pipe gets is not cut to the width of a screen
_GAP = 2  # between columns
_LEAST_TEXT = 8  # columns that a text is folded to at most


def output_console() -> Console:
    """Standard output, in which nothing is taken for markup."""
    width = None if sys.stdout.isatty() else _UNCUT
    return Console(width=width, markup=False, emoji=False, highlight=False)


def new_table(*columns: str, left: Collection[str], least: Mapping[str, int] | None = None) -> Table:
    """A table without rows. Columns in `left` are text, and folded where they are too long, to no less than in `least`; a
    header of several words may be folded too."""
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for column in columns:
        if column in left:
            table.add_column(column, overflow="fold", min_width=(least or {}).get(column))
        else:
            table.add_column(column, justify="right", overflow="fold", no_wrap=" " not in column)
    return table


def print_in_blocks(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[str]
) -> None:
    """Print a table in as many blocks of columns as the console's width asks for, each with the columns in `left`, which
    stand first. Long texts are folded, numbers never folded nor cut: where the width is too small, lines are longer."""
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    longest = max(_LEAST_TEXT, console.width // 3)
    widths = [min(width, longest) if name in left else width for name, width in zip(columns, widths, strict=True)]
    text = [number for number, name in enumerate(columns) if name in left]
    for place, block in enumerate(_blocks(widths, len(text), console.width)):
        chosen = [*text, *block]
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        for number in chosen:
            justify: JustifyMethod = "left" if number in text else "right"
            table.add_column(columns[number], justify=justify, overflow="fold", width=widths[number])
        for row in rows:
            table.add_row(*(row[number] for number in chosen))
        table.width = _width(widths, chosen)
        if place:
            console.print()
        console.print(table, crop=False)


def _blocks(widths: Sequence[int], first: int, most: int) -> Iterator[list[int]]:
    """Numbers of the columns behind the `first`, block by block."""
    block: list[int] = []
    for number in range(first, len(widths)):
        if block and _width(widths, [*range(first), *block, number]) > most:
            yield block
            block = []
        block.append(number)
    yield block


def _width(widths: Sequence[int], chosen: Sequence[int]) -> int:
    return sum(widths[number] + _GAP for number in chosen) - _GAP
