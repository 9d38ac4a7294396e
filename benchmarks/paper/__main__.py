"""`python -m benchmarks paper`, which is `make paper`: train, keep, read back, measure."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import click

from benchmarks.common import RESULTS, Result, console, finish
from benchmarks.paper import jobs, report
from benchmarks.paper.data import TASKS
from benchmarks.paper.methods import Calibrated
from benchmarks.paper.running import PROCESSES, SEEDS, folder_of, run_jobs
from benchmarks.paper.train import new_model
from tswitch_format.switch.options import DEFAULT_DENSITY
from tswitch_tools.sweep import Packed, SweepTable

TABLES = (jobs.alone, jobs.calibrated, jobs.together, jobs.routed)
OTHERS = (jobs.by_tasks, jobs.pruned)

folder_option = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/paper"),
    show_default=True,
    help="Where checkpoints go.",
)
keep_option = click.option("--keep", is_flag=True, help="Use the checkpoints that an earlier run left in the folder.")
processes_option = click.option(
    "--processes", type=click.IntRange(1), default=PROCESSES, show_default=True, help="Of one thread each."
)


@click.command()
@folder_option
@keep_option
@processes_option
@click.option(
    "--seeds", type=click.IntRange(1, len(SEEDS)), default=len(SEEDS), show_default=True, help="Fewer are not saved."
)
def main(folder: Path, keep: bool, processes: int, seeds: int) -> None:
    """What every method keeps of six experts of a transformer of 5.3 M parameters, at what size: three seeds."""
    start = time.monotonic()
    out = console()
    used = SEEDS[:seeds]
    made = run_jobs(prepared(folder, keep=keep), used, [*TABLES, *OTHERS], out, processes)
    by_seed = [
        made[number : number + len(TABLES) + len(OTHERS)] for number in range(0, len(made), len(TABLES) + len(OTHERS))
    ]
    table = SweepTable.join(found for parts in by_seed for found in parts[: len(TABLES)])
    parameters = sum(p.numel() for p in new_model().parameters())
    result = Result(
        "paper",
        "what the methods keep of real experts, and at what size",
        "make paper",
        {
            "parameters": parameters,
            "tasks": len(TASKS),
            "seeds": seeds,
            "processes of one thread": processes,
            "minutes": round((time.monotonic() - start) / 60, 1),
            "checkpoints": "of an earlier run" if keep else "trained in this time",
        },
    )
    report.tasks_table(result, table, "full expert")
    report.methods_table(result, "Methods", table)
    report.targets_table(result, table, [_aimed(DEFAULT_DENSITY), _aimed(jobs.FEW[0])])
    result.tables[-1].note = report.routing_note(table, "Auto-Switch, batch, hard", Packed().name)
    together = SweepTable.join(parts[TABLES.index(jobs.together)] for parts in by_seed)
    by_count = {
        count: SweepTable.join(parts[len(TABLES)][place] for parts in by_seed)
        for place, count in enumerate(jobs.COUNTS)
    }
    report.merging_table(result, {**by_count, len(TASKS): together}, _pictures(folder, seeds))
    report.pulse_table(
        result, [point for parts in by_seed for point in parts[len(TABLES) + 1]], _pictures(folder, seeds)
    )
    table.plot(_pictures(folder, seeds) / "paper-methods.svg")
    result.raw["rows"] = report.raw(table.rows)
    finish(result, save=seeds == len(SEEDS))


def _aimed(density: float) -> list[str]:
    """What is kept by the default rule at a density, and by it when it is calibrated."""
    return [Packed(density=density).name, Calibrated(0, density).name]


def prepared(folder: Path, *, keep: bool) -> Path:
    """The folder, without the checkpoints that an earlier run left there unless they are wanted. What else is in it stays."""
    for seed in () if keep else SEEDS:
        old = folder_of(folder, seed)
        if old.exists():
            shutil.rmtree(old)
    return folder


def _pictures(folder: Path, seeds: int) -> Path:
    return RESULTS if seeds == len(SEEDS) else folder


if __name__ == "__main__":
    main()
