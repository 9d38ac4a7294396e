"""How much the masks of each pair of tasks overlap, as a picture: PNG or SVG, the same bytes for the same masks.

    check    what can be known before anything is counted
    write    masks -> file, whole or not at all

Drawn by matplotlib (extra `plots`), without its pyplot, which would look for a screen.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import tswitch_format as tsw
from tswitch_format.atomic import AtomicFile, check_output
from tswitch_tools.text import printable, rounded

_SUFFIXES = (".png", ".svg")
_NUMBERS = 30  # tasks up to which each square has its number
_INCHES = (0.45, 4.5, 40.0)  # a task, the rest, at most
_NAME = 32  # characters
# What a user's own matplotlibrc says of pictures does not count. Names in an SVG are text, to be found and read aloud.
_STYLE = {"svg.hashsalt": "tsw", "svg.fonttype": "none"}


def check(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Raise OptionError for another kind of picture, OutputError for one of the inputs, TswError without matplotlib."""
    if path.suffix.lower() not in _SUFFIXES:
        raise tsw.OptionError(
            f"{path}: expected the name of a picture that ends in {' or '.join(_SUFFIXES)}; name it so"
        )
    check_output(path, inputs)
    if find_spec("matplotlib") is None:
        raise tsw.TswError(f"{path}: matplotlib is needed to draw it; run pip install 'tswitch-format[plots]'")


def write(found: tsw.Overlap, path: Path) -> None:
    """Write the picture. Raises what `check` does, and OutputError."""
    check(path)
    data = draw(found, path.suffix.lower()[1:])
    with AtomicFile(path) as output:
        output.write(data)
        output.commit()


def draw(found: tsw.Overlap, form: str) -> bytes:
    """The picture as "png" or "svg"."""
    import matplotlib.style  # noqa: PLC0415  # an extra, and slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    shares = 100 * found.jaccard
    np.fill_diagonal(shares, np.nan)  # says nothing, and would take all the colours
    count = len(found.tasks)
    each, rest, most = _INCHES
    inches = min(rest + each * count, most)
    stream = io.BytesIO()
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names may be in any script: boxes, but no noise
        figure = Figure(figsize=(inches + 1, inches), layout="constrained")
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
        figure.savefig(stream, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return stream.getvalue()


def _shown(task: str) -> str:
    name = printable(task)
    return name if len(name) <= _NAME else name[: _NAME - 3] + "..."
