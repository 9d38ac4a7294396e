"""What is measured of one seed's experts: functions of a folder and a seed, for `running.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper.auto import auto_rows
from benchmarks.paper.data import TASKS
from benchmarks.paper.evaluation import accuracy_on
from benchmarks.paper.methods import Calibrated, Scored, Tinted
from benchmarks.paper.pulse import Point, pulse_points
from tswitch_format.switch.options import DEFAULT_DENSITY
from tswitch_tools.sweep import Consensus, Emr, LowRank, Method, Packed, Sum, SweepTable, Tall, Ties, Whole, tsw_sweep

DENSITIES = (0.004, 0.03, 0.08)  # beside the default
SCALES = (0.1, 0.2, 0.3, 0.5, 0.8)  # of merged models
COUNTS = (2, 4)  # tasks; all of them are in `together`
FEW = (0.004, DEFAULT_DENSITY)  # for methods that learn


def swept(folder: Path, seed: int, methods: Sequence[Method], tasks: int = len(TASKS)) -> SweepTable:
    """A sweep over the first tasks: chosen on validation, measured on test."""
    names = [task.name for task in TASKS[:tasks]]
    return tsw_sweep(
        folder / "base.safetensors",
        {name: folder / f"{name}.safetensors" for name in names},
        accuracy_on(seed, "test"),
        validate=accuracy_on(seed, "validation"),
        methods=methods,
        run=str(seed),
        loads=1,
    )


def alone(folder: Path, seed: int) -> SweepTable:
    """Experts one by one, by rules that need no data."""
    ours = [Packed(density=density) for density in sorted((*DENSITIES, DEFAULT_DENSITY))]
    old = [Packed(density=d, select="tensor", knob_dtype="u8") for d in (0.005, 0.02)]
    paper = [Packed(preset="paper", discard=discard) for discard in (0.6, 0.9)]
    ranks = [LowRank(rank, "int8") for rank in (4, 8, 16)]
    return swept(folder, seed, [Whole(), *ours, *old, *paper, *ranks])


def together(folder: Path, seed: int) -> SweepTable:
    """Merged models, masks over a shared vector, importance scores, tinting."""
    learned = [Scored(seed, DEFAULT_DENSITY), Tinted(seed, DEFAULT_DENSITY)]
    return swept(folder, seed, [*_merged(), Tall(), Emr(), *learned])


def _merged() -> list[Method]:
    return [Sum(SCALES), Ties(SCALES), Consensus(SCALES)]


def calibrated(folder: Path, seed: int) -> SweepTable:
    """Calibrated knobs."""
    return swept(folder, seed, [Calibrated(seed, density) for density in FEW])


def routed(folder: Path, seed: int) -> SweepTable:
    """Auto-Switch."""
    return auto_rows(folder, seed, DEFAULT_DENSITY)


def pruned(folder: Path, seed: int) -> list[Point]:
    """The pulse effect."""
    return pulse_points(folder, seed)


def by_tasks(folder: Path, seed: int) -> list[SweepTable]:
    """Merging the first two tasks, and four."""
    return [swept(folder, seed, _merged(), tasks=count) for count in COUNTS]
