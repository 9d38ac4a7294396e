"""Curves as SVG, drawn by matplotlib without its pyplot; the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

_STYLE = {"svg.hashsalt": "tsw", "svg.fonttype": "none"}


def draw(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    up: str,
    ticks: Sequence[float] | None = None,
    logarithmic: bool = False,
) -> None:
    """Write one picture: by the name of each curve its points (x, y); `logarithmic`: on both axes."""
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for name, points in curves.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        if ticks is not None:
            axes.set_xticks(ticks)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, format="svg", metadata={"Date": None})
