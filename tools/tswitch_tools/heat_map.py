"""How much the masks of each pair of tasks overlap, as a picture.

draw     masks -> bytes
write    masks -> file, whole or not at all
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import tswitch_format as tsw
from tswitch_tools import pictures
from tswitch_tools.text import printable, rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUMBERS = 30  # tasks up to which each square has its number
_INCHES = (0.45, 4.5, 40.0)  # a task, the rest, at most
_NAME = 32  # characters


def write(found: tsw.Overlap, path: Path) -> None:
    """Write the picture. Raises what `pictures.check` does, and OutputError."""
    pictures.check(path)
    pictures.write(draw(found, pictures.form_of(path)), path)


def draw(found: tsw.Overlap, form: str) -> bytes:
    """The picture as "png" or "svg"."""
    shares = 100 * found.jaccard
    np.fill_diagonal(shares, np.nan)  # says nothing, and would take all the colours
    count = len(found.tasks)
    each, rest, most = _INCHES
    inches = min(rest + each * count, most)

    def squares(figure: Figure) -> None:
        axes = figure.add_subplot()
        top = np.nanmax(shares) if count > 1 else 0.0
        image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=top or 1)
        names = [_shown(task) for task in found.tasks]
        axes.set_xticks(range(count), names, rotation=90, parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
        axes.set_title("% active in both tasks, of those active in either")
        figure.colorbar(image, ax=axes, shrink=0.8)
        if count <= _NUMBERS:
            for (row, column), share in np.ndenumerate(shares):
                if row != column:
                    ink = "black" if share > 0.6 * top else "white"
                    axes.text(column, row, rounded(share), ha="center", va="center", fontsize=7, color=ink)

    return pictures.drawn(form, (inches + 1, inches), squares)


def _shown(task: str) -> str:
    name = printable(task)
    return name if len(name) <= _NAME else name[: _NAME - 3] + "..."
