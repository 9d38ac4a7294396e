"""Pictures that commands and tables draw: PNG or SVG, whole or not at all, the same bytes for the same numbers.

    check    what can be known before anything is counted or drawn
    drawn    inches and what to draw -> bytes
    write    bytes -> file

Drawn by matplotlib (extra `plots`), without its pyplot, which would look for a screen.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import tswitch_format as tsw
from tswitch_format.atomic import AtomicFile, check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg")
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


def form_of(path: Path) -> str:
    """The form that a picture's name asks for: "png" or "svg"."""
    return path.suffix.lower()[1:]


def drawn(form: str, inches: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """The picture of so many inches, width first, that `draw` makes, as "png" or "svg"."""
    import matplotlib.style  # noqa: PLC0415  # an extra, and slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    stream = io.BytesIO()
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # names may be in any script: boxes, but no noise
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        figure.savefig(stream, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return stream.getvalue()


def write(data: bytes, path: Path) -> None:
    """Write a picture. Raises OutputError."""
    with AtomicFile(path) as output:
        output.write(data)
        output.commit()
