"""Curves by density: bytes over the entropy bound, and time from file to applied weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.tsw import OURS
from tswitch_tools import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Curves = Mapping[str, Sequence[tuple[float, float]]]  # name -> (density %, value)

_INCHES = (13.0, 5.5)
_MARKS = "osv^D<>phX*Pd8"


def save(path: Path, panels: Mapping[str, Curves]) -> None:
    """Write one picture with a panel for each label of an axis. A name has the same colour and mark in all of them."""
    pictures.check(path)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))

    def draw(figure: Figure) -> None:
        shown: dict[str, Line2D] = {}
        for axes, (label, curves) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            for name, points in curves.items():
                number = names.index(name)
                (shown[name],) = axes.plot(
                    *zip(*sorted(points), strict=True),
                    marker=_MARKS[number % len(_MARKS)],
                    color=f"C{number % 10}",
                    linestyle="-" if number < 10 else "--",
                    linewidth=3 if name == OURS else 1,
                    markersize=5,
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xlabel("density %")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3, which="both")
        figure.legend([shown[name] for name in names], names, loc="outside right upper", fontsize=8)

    pictures.write(pictures.drawn(pictures.form_of(path), _INCHES, draw), path)
