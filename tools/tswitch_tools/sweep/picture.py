"""A sweep as a picture: what each method keeps against what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tswitch_tools import pictures
from tswitch_tools.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[str, str, float, float]  # method, family, % of fp32, % kept

_INCHES = (10.0, 5.5)
_LABELLED = "25"  # first digits of the ticks between the powers of ten that have a label: more would overlap
_MARKS = "os^vD<>phX*P"


def write(points: Sequence[Point], path: Path) -> None:
    """Write the picture. Raises what `pictures.check` does, and OutputError."""
    pictures.check(path)
    pictures.write(draw(points, pictures.form_of(path)), path)


def draw(points: Sequence[Point], form: str) -> bytes:
    """The picture as "png" or "svg". A line for each family, by size; a mark for each method that has none."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for method, family, cost, kept in points:
        if cost > 0 and not math.isnan(kept):
            lines.setdefault(family or method, []).append((cost, kept))

    def curves(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, (name, found) in enumerate(lines.items()):
            costs, shares = zip(*sorted(found), strict=True)
            mark = _MARKS[number % len(_MARKS)]
            axes.plot(costs, shares, marker=mark, linewidth=1, markersize=5, label=printable(name).lstrip("_"))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in _LABELLED else "")
        axes.tick_params(axis="x", which="both", labelsize=8)
        axes.set_xlabel("bytes a task, % of the model in fp32")
        axes.set_ylabel("% of the full expert's score, mean over tasks")
        axes.grid(alpha=0.3)
        if lines:
            for text in figure.legend(loc="outside right upper").get_texts():
                text.set_parse_math(False)

    return pictures.drawn(form, _INCHES, curves)
