"""`python -m benchmarks frontier`, which is `make frontier`: every rule of `pack` at every density, and low ranks beside them.

What the defaults of `pack` were chosen by, so all of it is on validation images; `make paper` then measures the chosen rule on
test images. Sizes are those of the files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path

import click

from benchmarks.common import RESULTS, Result, console, finish
from benchmarks.paper.__main__ import folder_option, keep_option, prepared, processes_option
from benchmarks.paper.data import TASKS
from benchmarks.paper.evaluation import accuracy_on
from benchmarks.paper.running import SEEDS, run_jobs
from tswitch_format.switch.options import DEFAULT_KNOB_DTYPE, KNOB_PERS, KNOBS, SELECTS
from tswitch_tools.sweep import LowRank, Method, Packed, SweepTable, tsw_sweep

DENSITIES = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.05, 0.1, 0.2)
RANKS = (1, 2, 4, 8, 16)
DRAWN = {  # families in the picture; all are in the table
    *(Packed(select=select, knob="projection", knob_per="row-col").family for select in SELECTS),
    *(Packed(select="tensor", knob=knob, knob_per="tensor").family for knob in KNOBS),
    *(LowRank(1, dtype).family for dtype in ("int8", "f16")),  # type: ignore[arg-type]
    Packed(preset="paper").family,
}


def rules(select: str) -> list[Packed]:
    """Every knob, and for the projection with both factors every way to store them, at one density."""
    pairs = [(knob, per) for knob, per in product(KNOBS, KNOB_PERS) if knob == "projection" or per != "row-col"]
    plain = [Packed(select=select, knob=knob, knob_per=per) for knob, per in pairs]
    return plain + [
        Packed(select=select, knob="projection", knob_per="row-col", knob_dtype=dtype)
        for dtype in ("u8", "f16")
        if select in ("spectral", "tensor")
    ]


def of_select(select: str, folder: Path, seed: int) -> SweepTable:
    """All rules of one selection at all densities."""
    return _swept(
        folder,
        seed,
        [
            Packed(density=d, select=r.select, knob=r.knob, knob_per=r.knob_per, knob_dtype=r.knob_dtype)
            for r in rules(select)
            for d in DENSITIES
        ],
    )


def of_ranks(folder: Path, seed: int) -> SweepTable:
    """Singular value decompositions of the differences."""
    return _swept(folder, seed, [LowRank(rank, "int8") for rank in RANKS] + [LowRank(rank, "f16") for rank in RANKS])


def of_paper(folder: Path, seed: int) -> SweepTable:
    """The authors' rule at discard ratios whose sizes may be compared."""
    return _swept(folder, seed, [Packed(preset="paper", discard=x) for x in (0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)])


def _swept(folder: Path, seed: int, methods: Sequence[Method]) -> SweepTable:
    experts = {task.name: folder / f"{task.name}.safetensors" for task in TASKS}
    return tsw_sweep(
        folder / "base.safetensors", experts, accuracy_on(seed, "validation"), methods=methods, run=str(seed), loads=0
    )


@click.command()
@folder_option
@keep_option
@processes_option
def main(folder: Path, keep: bool, processes: int) -> None:
    """Every selection and knob rule of `tsw pack` from 0.1 to 20 % density, on validation images, three seeds."""
    start = time.monotonic()
    out = console()
    jobs = [*(partial(of_select, select) for select in SELECTS), of_ranks, of_paper]
    found = run_jobs(prepared(folder, keep=keep), SEEDS, jobs, out, processes)
    table = SweepTable.join(found)
    result = Result(
        "frontier",
        "which rule keeps most at each size",
        "make frontier",
        {
            "tasks": len(TASKS),
            "seeds": len(SEEDS),
            "images": "validation",
            "minutes": round((time.monotonic() - start) / 60, 1),
        },
    )
    best = table.frontier()
    shown = result.table(
        "The frontier: no other row keeps as much in as few bytes",
        "rule",
        "% of fp32",
        "kept %",
        "spread",
        "worst task %",
    )
    for row in sorted(best, key=lambda row: row.percent_of_fp32):
        shown.add(row.method, *_figures(row.percent_of_fp32, row.kept, row.spread, row.worst))
    summary = table.summary()
    every = result.table(
        "Every rule: % of fp32: % kept / % kept of the worst task, by density (or rank, or discard ratio) from low to high",
        "rule",
        *(str(number + 1) for number in range(len(DENSITIES))),
        note=f"Densities in %: {', '.join(f'{100 * d:g}' for d in DENSITIES)}. Factors are {DEFAULT_KNOB_DTYPE} if not said.",
    )
    for family in dict.fromkeys(row.family for row in summary):
        cells = [
            f"{row.percent_of_fp32:.2f}: {row.kept:.1f} / {row.worst:.0f}" for row in summary if row.family == family
        ]
        every.add(family, *cells, *["-"] * (len(DENSITIES) - len(cells)))
    SweepTable([row for row in table.rows if row.family in DRAWN]).plot(RESULTS / "frontier.svg")
    result.raw["summary"] = [asdict(row) for row in summary]
    finish(result, save=True)


def _figures(*numbers: float | None) -> list[float | None]:
    return [None if number is None else round(number, 3) for number in numbers]
