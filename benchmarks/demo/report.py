"""From checkpoints to the demo's table. All use of the library is in `keep`, `keep_together` and `restored`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

import tswitch_format as tsw
from benchmarks.demo.data import TASKS, Part, Task, load
from benchmarks.demo.model import DigitTransformer
from benchmarks.demo.train import accuracy
from tswitch_tools.report import report

LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)  # what the TALL-masks paper chooses from, for each task


@dataclass(frozen=True)
class Kept:
    """What the library made of one expert: `file_bytes` of its own, `shared_bytes` its part of what tasks share;
    `entropy_bytes` of its masks and signs."""

    method: str
    restored: Path
    file_bytes: int
    shared_bytes: int
    entropy_bytes: float


@dataclass(frozen=True)
class Row:
    """One row of the table; accuracies are shares of the test part."""

    task: Task
    base: float
    expert: float
    restored: float
    kept: Kept


def keep(folder: Path, name: str, density: float) -> Kept:
    """Pack one expert at a density, validate the file, and restore the expert from base and file alone."""
    path = folder / f"{name}-{density}.tsw"
    tsw.pack(folder / "base.safetensors", folder / f"{name}.safetensors", path, task=name, density=density)
    return restored(folder, path, name, f"T-Switch {100 * density:g}%")


def restored(folder: Path, path: Path, name: str, method: str) -> Kept:
    """Validate a file, and restore one expert from base and file alone."""
    checked = tsw.validate(path, level="full")
    if not checked.ok:
        raise RuntimeError(f"{path.name} did not pass validation: {checked}")
    out = folder / f"{path.stem}.{name}.restored.safetensors"
    tsw.restore(folder / "base.safetensors", path, out, tasks=[name])
    with tsw.open(path) as file:
        task = next(task for task in report(file).tasks if task.name == name)
        entropy = task.entropy_bits_per_param * task.params / 8
    return Kept(method, out, task.bytes - task.shared_bytes, task.shared_bytes, entropy)


def keep_together(folder: Path, names: list[str]) -> list[Kept]:
    """Keep all experts in one file as masks over a vector that they share, in two ways; in the order of the names for each.

    Each task's lambda is the one with the best restored expert on the validation images.
    """
    base, experts = folder / "base.safetensors", {name: folder / f"{name}.safetensors" for name in names}
    found: dict[str, dict[float, float]] = {name: {} for name in names}
    path = folder / "tall-masks.tsw"
    for value in LAMBDAS:
        tsw.make_tall(base, experts, path, lambdas=value)
        for name in names:
            found[name][value] = measured(
                restored(folder, path, name, "").restored, task_named(name), load().validation
            )
    chosen = {name: max(by_lambda, key=by_lambda.__getitem__) for name, by_lambda in found.items()}
    tsw.make_tall(base, experts, path, lambdas=chosen)
    unified = folder / "emr.tsw"
    tsw.make_emr(base, experts, unified)
    return [restored(folder, path, name, "TALL-masks") for name in names] + [
        restored(folder, unified, name, "EMR") for name in names
    ]


def task_named(name: str) -> Task:
    """The task of that name."""
    return next(task for task in TASKS if task.name == name)


def measured(path: Path, task: Task, part: Part) -> float:
    """Accuracy of a checkpoint on a task's images of a part of the data."""
    model = DigitTransformer()
    model.load_state_dict(load_file(path))
    return accuracy(model, *task.of(part))


def measure(folder: Path, name: str, kept: Kept) -> Row:
    """Measure base, expert and restored expert on the task's test images."""
    task, test = task_named(name), load().test
    paths = (folder / "base.safetensors", folder / f"{name}.safetensors", kept.restored)
    return Row(task, *(measured(path, task, test) for path in paths), kept)


def show(rows: list[Row], console: Console) -> None:
    """Print the table, and under it what its figures count."""
    parameters = sum(p.numel() for p in DigitTransformer().parameters())
    tasks = len({row.task.name for row in rows})
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)  # fits 80 columns, which a pipe has
    table.add_column("expert", no_wrap=True)
    table.add_column("kept as", no_wrap=True)
    for heading in ("base", "full", "back", "own kB", "% fp32", "% bound", "+ shared"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        kept = row.kept
        whole = kept.file_bytes + kept.shared_bytes
        table.add_row(
            row.task.name,
            kept.method,
            *(f"{100 * share:.1f}" for share in (row.base, row.expert, row.restored)),
            f"{kept.file_bytes / 1000:.1f}",
            f"{100 * kept.file_bytes / (4 * parameters):.2f}",
            f"{100 * kept.file_bytes / kept.entropy_bytes:.1f}" if kept.entropy_bytes else "-",
            f"{100 * whole / (4 * parameters):.2f}" if kept.shared_bytes else "-",
        )
    console.print(table)
    images = len(load().test.digits)
    for line in (
        f"base, full, back: % of {images} test images of the expert's task that base, full and restored expert get right.",
        f"own kB: the task's bytes in its .tsw file, with knobs, factors, index and digests; in % of fp32, 4 bytes for each of "
        f"{parameters:,} parameters; in % of the bound, the entropy N (H(p) + p) / 8 bytes of each tensor, of its planes only.",
        f"+ shared: % of fp32 with the task's part, one of {tasks}, of the vector that masks of all tasks select from.",
        "Lambdas of TALL-masks were chosen on other images than these.",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
