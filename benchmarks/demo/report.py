"""From checkpoints to the demo's table. All use of the library is in `keep`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

import tswitch_format as tsw
from benchmarks.demo.data import TASKS, Task, load
from benchmarks.demo.model import DigitTransformer
from benchmarks.demo.train import accuracy


@dataclass(frozen=True)
class Kept:
    """What the library made of one expert."""

    restored: Path
    density: float
    file_bytes: int
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
    base, expert = folder / "base.safetensors", folder / f"{name}.safetensors"
    path, restored = folder / f"{name}-{density}.tsw", folder / f"{name}-{density}.restored.safetensors"
    tsw.pack(base, expert, path, task=name, density=density)
    report = tsw.validate(path, level="full")
    if not report.ok:
        raise RuntimeError(f"{path.name} did not pass validation: {report}")
    with tsw.open(path) as file:
        switches = [file.switch(tensor, task=name) for tensor in file.keys(name)]
        entropy = sum(entropy_bytes(switch.elements, switch.density) for switch in switches)
    tsw.restore(base, path, restored, tasks=[name])
    return Kept(restored, density, path.stat().st_size, entropy)


def entropy_bytes(elements: int, density: float) -> float:
    """Entropy in bytes of a mask with this share of ones, placed at random, and of one fair sign for each of them."""
    mask = sum(-p * math.log2(p) for p in (density, 1 - density) if p > 0)
    return elements * (mask + density) / 8


def measure(folder: Path, name: str, density: float) -> Row:
    """Keep one expert as a `.tsw` file, and measure base, expert and restored expert on the task's test images."""
    task = next(task for task in TASKS if task.name == name)
    kept = keep(folder, name, density)
    x, y = task.of(load().test)
    model = DigitTransformer()

    def measured(path: Path) -> float:
        model.load_state_dict(load_file(path))
        return accuracy(model, x, y)

    return Row(
        task,
        base=measured(folder / "base.safetensors"),
        expert=measured(folder / f"{name}.safetensors"),
        restored=measured(kept.restored),
        kept=kept,
    )


def show(rows: list[Row], console: Console) -> None:
    """Print the table, and under it what its figures count."""
    parameters = sum(p.numel() for p in DigitTransformer().parameters())
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)  # fits 80 columns, which a pipe has
    table.add_column("expert", no_wrap=True)
    for heading in ("density", "base", "full", "restored", "file", "of fp32", "of bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.task.name,
            f"{row.kept.density:.0%}",
            *(f"{share:.1%}" for share in (row.base, row.expert, row.restored)),
            f"{row.kept.file_bytes / 1000:.1f} kB",
            f"{row.kept.file_bytes / (4 * parameters):.2%}",
            f"{row.kept.file_bytes / row.kept.entropy_bytes:.1%}" if row.kept.entropy_bytes else "-",
        )
    console.print(table)
    images = len(load().test.digits)
    for line in (
        f"Accuracy of base, full expert and restored expert on {images} test images of the expert's task.",
        f"file: the whole .tsw file, with knobs, factors, index and digests. fp32: 4 bytes for each of {parameters:,} "
        "parameters.",
        "bound: the entropy N (H(p) + p) / 8 bytes of each tensor, of its mask and sign planes only, so over 100% is expected.",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
