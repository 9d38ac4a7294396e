"""How do time and memory grow with the number of parameters, from 1 M to 1.2 G, and with the number of tasks, from 1 to 20?

Times are of calls in one process, interleaved over all sizes. Memory is the peak of a fresh process that does nothing else.
Exponents are slopes of straight lines through the logarithms, by least squares: 1 is as the size, 0 not at all. What a small
model takes is mostly fixed, so the exponent between the two largest sizes is there too.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.numpy import save_file

import tswitch_format as tsw
from benchmarks import common, synthetic, workloads
from benchmarks.children import peak
from benchmarks.paper.plots import draw
from benchmarks.speed import DEFAULT, MAGNITUDE
from tswitch_format.torch import SwitchBank

SHARES = (0.001, 0.01, 0.1, 1.0)  # of 1.2 G parameters
SLOW_SHARE = 0.1  # the largest for the default rule
TASKS = (1, 2, 5, 10, 20)

_SWITCH = """
from safetensors.torch import load_file
from tswitch_format.torch import SwitchBank
bank = SwitchBank(load_file({base!r}))
for task in tsw.open({path!r}).tasks: bank.add(task, {path!r}, task=task)
for task in bank.experts: bank.activate(task)
"""


@dataclass(frozen=True, slots=True)
class Operation:
    """Something at one size: what is timed, and Python code that does it in a fresh process, where `tsw` is the library."""

    timed: common.Candidate
    alone: str

    @classmethod
    def of_code(cls, code: str, after: Callable[[], object] | None = None) -> Operation:
        """The same code for both."""
        return cls(
            common.Candidate(partial(exec, compile(code, "<benchmark>", "exec"), {"tsw": tsw}), None, after), code
        )


Operations = Mapping[str, Mapping[int, Operation]]  # by name and size
Figures = dict[str, dict[int, float]]


def fit_exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the line through (log x, log y) with the least squares: y grows as x to this power."""
    xs, ys = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def parameter_operations(
    folder: Path, output: Path, largest: synthetic.Model, scale: float
) -> dict[str, dict[int, Operation]]:
    """Models of all sizes, files packed from them, and what is done with each. `largest`: that of `speed` and `memory`."""
    found: dict[str, dict[int, Operation]] = {
        name: {} for name in ("pack by magnitude", "pack by the default rule", "restore", "validate", "open")
    }
    out = output / "restored"
    for share in SHARES:
        named = synthetic.similar(share * scale)
        model = largest if share == 1 else synthetic.make_named(folder / f"model-{share:g}", named)
        base, expert, path = str(model.base), str(model.expert), str(folder / f"{model.parameters}.tsw")
        tsw.pack(base, expert, path, **MAGNITUDE.options)
        common.read_once([*model.shards("base"), *model.shards("expert"), Path(path)])

        def pack(options: Mapping[str, object], model: synthetic.Model = model) -> Operation:
            names = (str(model.base), str(model.expert), str(folder / "new.tsw"))
            return Operation.of_code(f"tsw.pack(*{names!r}, **{options!r})")

        size = model.parameters
        found["pack by magnitude"][size] = pack(MAGNITUDE.options)
        if share <= SLOW_SHARE:
            found["pack by the default rule"][size] = pack(DEFAULT.options)
        found["restore"][size] = Operation.of_code(
            f"tsw.restore({base!r}, {path!r}, {str(out)!r})", lambda: shutil.rmtree(out, ignore_errors=True)
        )
        found["validate"][size] = Operation.of_code(f"tsw.validate({path!r})")
        found["open"][size] = Operation.of_code(f"with tsw.open({path!r}) as file: file.keys()")
    return found


def task_operations(folder: Path, scale: float) -> dict[str, dict[int, Operation]]:
    """Bundles of some of 20 tasks, and what is done with each."""
    random = np.random.default_rng(0)
    base = workloads.random_base(workloads.shapes_24m(scale), random)
    save_file(base, folder / "base.safetensors")
    tasks = [f"task {number}" for number in range(max(TASKS))]
    paths, _ = workloads.pack_tasks(folder, base, tasks, random)
    found: dict[str, dict[int, Operation]] = {name: {} for name in ("bundle", "open", "validate", "switch")}
    for count in TASKS:
        parts = [str(path) for path in paths[:count]]
        path = str(tsw.bundle(parts, folder / f"{count}-tasks.tsw"))
        found["bundle"][count] = Operation.of_code(f"tsw.bundle({parts!r}, {str(folder / 'new.tsw')!r})")
        found["open"][count] = Operation.of_code(
            f"with tsw.open({path!r}) as file: [file.keys(task) for task in file.tasks]"
        )
        found["validate"][count] = Operation.of_code(f"tsw.validate({path!r})")
        if count == 1:
            continue  # nothing to switch to
        bank = SwitchBank({name: torch.from_numpy(array).clone() for name, array in base.items()})
        for task in tasks[:count]:
            bank.add(task, path, task=task)
        switch = common.Candidate(partial(bank.activate, tasks[count - 1]), partial(bank.activate, tasks[0]))
        alone = _SWITCH.format(base=str(folder / "base.safetensors"), path=path)
        found["switch"][count] = Operation(switch, alone)
    return found


def measure(
    result: common.Result, title: str, across: str, operations: Operations, folder: Path, rounds: int
) -> dict[str, Figures]:
    """Tables of times and memory; the medians and peaks in them, by what they are."""
    every = {f"{name}, {size}": each for name, sizes in operations.items() for size, each in sizes.items()}
    times = common.interleave({name: each.timed for name, each in every.items()}, rounds)
    result.raw[f"{title}: seconds"] = dict(times.seconds)
    seconds: Figures = {}
    memory: Figures = {}
    for name, sizes in operations.items():
        seconds[name] = {size: times.summary(f"{name}, {size}").median for size in sizes}
        memory[name] = {}
        for size, each in sizes.items():
            memory[name][size] = peak(["-c", f"import tswitch_format as tsw\n{each.alone}"], folder)[0]
            if each.timed.after:
                each.timed.after()
    spread = max(most / least for least, most in ((min(s), max(s)) for s in times.seconds.values()))
    note = (
        f"Medians of {rounds} rounds, page cache warm; between the least and the most up to a factor of {spread:.2f}."
    )
    add_table(result, f"{title}: seconds", across, seconds, note)
    alone, _ = peak(["-c", "import tswitch_format"], folder)
    note = f"Peak resident memory of a fresh process; `import tswitch_format` alone: {alone:.0f} MiB."
    add_table(result, f"{title}: MiB", across, memory, note)
    return {"seconds": seconds, "MiB": memory}


def add_table(result: common.Result, title: str, across: str, figures: Figures, note: str) -> None:
    """A row for each operation: the figure at each size, and exponents."""
    sizes = sorted({size for points in figures.values() for size in points})
    columns = [f"{size:,} {across}" for size in sizes]
    table = result.table(title, "what", *columns, "exponent", "of the two largest", note=note, main=True)
    for name, points in figures.items():
        pairs = sorted(points.items())
        exponents = (fit_exponent(pairs), fit_exponent(pairs[-2:]))
        table.add(name, *(points.get(size) for size in sizes), *(f"{exponent:.2f}" for exponent in exponents))


def plot(found: Mapping[str, Figures], what: str, across: str) -> None:
    """A picture of times and one of memory, both axes logarithmic."""
    for unit, figures in found.items():
        curves = {name: list(points.items()) for name, points in figures.items()}
        path = common.RESULTS / f"growth-{what}-{unit.lower()}.svg"
        draw(path, curves, across=across, up=unit, logarithmic=True)


@click.command()
@common.folder_option
@common.scale_option
@common.keep_option
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
def main(folder: Path, scale: float, keep: bool, rounds: int) -> None:
    """Time and weigh pack, restore, validate, open, bundle and switch at several sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    result = common.Result(
        "growth",
        "time and memory against the number of parameters and of tasks",
        "python -m benchmarks growth" + (f" --scale {scale:g}" if scale != 1 else ""),
        {
            "rounds": rounds,
            "density by magnitude": MAGNITUDE.options["density"],
            "density of tasks": workloads.DENSITY,
            "torch threads": torch.get_num_threads(),
        },
        warnings=["The machine was shared with other work while this ran."],
    )
    largest = synthetic.make(folder, scale=scale)
    output = common.memory_folder(2 * largest.parameters) or folder
    with tempfile.TemporaryDirectory(dir=folder) as temporary, tempfile.TemporaryDirectory(dir=output) as out:
        place = Path(temporary)
        result.settings = {**result.settings, "restored to": "disk" if output == folder else "memory (tmpfs)"}
        operations = parameter_operations(place, Path(out), largest, scale)
        by_parameters = measure(result, "By parameters", "parameters", operations, place, rounds)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        by_tasks = measure(result, "By tasks", "tasks", task_operations(place, scale), place, rounds)
    if not keep:
        largest.remove()
    if common.saves(scale == 1):
        plot(by_parameters, "parameters", "parameters")
        plot(by_tasks, "tasks", "tasks")
    common.finish(result, save=scale == 1)
