"""What `make paper` found, as tables, JSON and plots in benchmarks/results/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.common import RESULTS, Cell, Result
from benchmarks.paper.data import BY_NAME
from benchmarks.paper.plots import draw
from benchmarks.paper.pulse import KINDS, Point
from tswitch_tools.sweep import Row, SummaryRow, SweepTable
from tswitch_tools.text import size

COLUMNS = ("method", "kept %", "spread", "worst task %", "worst", "a task", "% of fp32", "ms to switch", "chosen")
NOTE = (
    "Kept: accuracy in % of the full expert's on test images, mean over tasks and seeds; spread: standard deviation of the "
    "seeds' means; worst: the task with the lowest mean over seeds. A task: bytes of files on disk, what tasks share "
    "divided by their number. To switch: from files in the page cache to weights, one thread (Auto-Switch: from packed "
    "memory). * no other row of the table "
    "keeps as much in as few bytes. Chosen: on validation images."
)
# % of fp32 at most; % kept at least, of the mean and of the worst task
TARGETS: Sequence[tuple[float, float, float | None]] = ((0.5, 99.5, 97.0), (0.2, 98.0, None))


def tasks_table(result: Result, table: SweepTable, whole: str) -> None:
    """The accuracies of bases and experts."""
    found = result.table("Tasks", "task", "about", "base %", "expert %", "spread", note="Accuracy on test images.")
    rows = [row for row in table.rows if row.method == whole]
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        experts = [100 * row.expert for row in of_task]
        found.add(task, BY_NAME[task].about, 100 * fmean(row.base for row in of_task), fmean(experts), _spread(experts))


def methods_table(result: Result, title: str, table: SweepTable) -> None:
    """A row for each method; those of the frontier have a star."""
    best = {row.method for row in table.frontier()}
    shown = result.table(title, *COLUMNS, note=NOTE)
    for row in sorted(table.summary(), key=lambda row: row.percent_of_fp32):
        shown.add(f"{row.method} *" if row.method in best else row.method, *_cells(row))
    for failure in table.failures:
        result.warnings.append(f"{failure.method} (seed {failure.run}) failed: {failure.error}")


def _cells(row: SummaryRow) -> tuple[Cell, ...]:
    return (
        round(row.kept, 2),
        None if row.spread is None else round(row.spread, 2),
        round(row.worst, 1),
        row.worst_task,
        size(row.nbytes),
        round(row.percent_of_fp32, 3),
        round(1000 * row.switch_seconds, 1),
        row.chosen or "-",
    )


def targets_table(result: Result, table: SweepTable, rows: Sequence[Sequence[str]]) -> None:
    """Whether what was aimed at is met. `rows`: for each target the methods that were meant for it, named beforehand."""
    found = result.table(
        "Targets", "method", "% of fp32", "at most", "kept %", "at least", "worst task %", "at least", "met"
    )
    summary = {row.method: row for row in table.summary()}
    for (most, least, worst), methods in zip(TARGETS, rows, strict=True):
        for method in methods:
            row = summary.get(method)
            if row is None:
                found.add(method, None, most, None, least, None, worst, False)
                continue
            met = row.percent_of_fp32 <= most and row.kept >= least and (worst is None or row.worst >= worst)
            found.add(
                method, round(row.percent_of_fp32, 3), most, round(row.kept, 2), least, round(row.worst, 1), worst, met
            )


def routing_note(table: SweepTable, routed: str, switched: str) -> str:
    """How far a model that chooses its experts itself is from one that is told."""
    kept = {row.method: row.kept for row in table.summary()}
    if routed not in kept or switched not in kept:
        return ""
    return f"{routed}: {kept[routed]:.2f} % kept, {switched}: {kept[switched]:.2f} %."


def pulse_table(result: Result, points: Sequence[Point], folder: Path = RESULTS) -> None:
    """What pruned experts keep, and its picture."""
    ratios = sorted({point.ratio for point in points})
    table = result.table(
        "The pulse effect: % kept when a share of the changes is dropped",
        "dropped",
        *(f"{100 * ratio:g} %" for ratio in ratios),
        note="Mean over tasks and seeds; what stays is not binarised.",
    )
    curves = {}
    for kind in KINDS:
        means = {r: fmean(p.kept for p in points if (p.kind, p.ratio) == (kind, r)) for r in ratios}
        table.add(kind, *(round(mean, 1) for mean in means.values()))
        curves[f"{kind} dropped"] = [(100 * ratio, mean) for ratio, mean in means.items()]
    draw(folder / "paper-pulse.svg", curves, across="% of changes dropped", up="% of the expert's accuracy kept")


def merging_table(result: Result, by_count: dict[int, SweepTable], folder: Path = RESULTS) -> None:
    """What one model for several tasks keeps, by their number, and its picture."""
    table = result.table(
        "Several tasks together: % kept by the number of tasks",
        "method",
        *map(str, by_count),
        note="Mean over the first tasks of the table of tasks, and seeds.",
    )
    summaries = {count: {row.method: row.kept for row in found.summary()} for count, found in by_count.items()}
    curves = {}
    for method in next(iter(summaries.values())):
        table.add(method, *(round(found[method], 1) for found in summaries.values()))
        curves[method] = [(float(count), found[method]) for count, found in summaries.items()]
    counts = [float(count) for count in by_count]
    draw(folder / "paper-merging.svg", curves, across="tasks", up="% of the experts' accuracy kept", ticks=counts)


def raw(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Rows for the JSON."""
    return [asdict(row) for row in rows]


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
